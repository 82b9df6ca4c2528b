"use strict";
// Sorts and filters tables, and shows changed utterances. Text from the run is set as text, never as HTML.
(() => {
  const numeric = (cell) => (cell === "" ? NaN : Number(cell));

  function compare(a, b, sign) {
    if (a === "" || b === "") return (a === "") - (b === ""); // missing values stay last either way
    const x = numeric(a), y = numeric(b);
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [row.cells[column].dataset.v, row]);
      rows.sort((a, b) => compare(a[0], b[0], sign));
      body.append(...rows.map((pair) => pair[1]));
    }));
  }

  // One search field and one choice of split may rule several tables; a row stays where both keep it.
  const tablesOf = (names) => names.split(" ").map((name) => document.getElementById(name));
  const inputs = [...document.querySelectorAll("input[data-filter]")];
  const choices = [...document.querySelectorAll("select[data-split]")];
  const texts = new Map();

  function refilter(table) {
    const input = inputs.find((one) => one.dataset.filter.split(" ").includes(table.id));
    const choice = choices.find((one) => one.dataset.split.split(" ").includes(table.id));
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = choice ? choice.value : "";
    const rows = [...table.tBodies[0].rows];
    let shown = 0;
    for (const row of rows) {
      if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
      row.hidden = !words.every((word) => texts.get(row).includes(word)) || (wanted !== "" && row.dataset.split !== wanted);
      shown += row.hidden ? 0 : 1;
    }
    const count = document.querySelector(`[data-count="${table.id}"]`);
    count.textContent = words.length || wanted ? `${shown} of ${rows.length} rows` : "";
  }

  for (const input of inputs) {
    input.addEventListener("input", () => tablesOf(input.dataset.filter).forEach(refilter));
  }
  for (const choice of choices) {
    choice.addEventListener("input", () => tablesOf(choice.dataset.split).forEach(refilter));
    const many = document.querySelectorAll(`#${choice.dataset.split.split(" ")[0]} tbody tr`).length > 16;
    if (many) {
      choice.value = choice.lastElementChild.value; // the reported split; the others are one choice away
      choice.dispatchEvent(new Event("input"));
    }
  }

  const data = JSON.parse(document.getElementById("changes").textContent);
  if (!data.utterances.length) return;
  const PAGE = 25;
  const at = (id) => document.getElementById(id);
  const [from, to, show, split, order, search] = ["system-a", "system-b", "show", "split", "order", "search"].map(at);
  let limit = PAGE;

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function options(select, names, chosen) {
    names.forEach((name, index) => {
      const option = element("option", "", name);
      option.value = select === split ? name : String(index);
      select.append(option);
    });
    if (chosen !== undefined) select.value = String(chosen);
  }

  const wordsOf = (variant) => [...variant.heard.filter((word) => typeof word === "string"), ...variant.inserted.map((pair) => pair[1])];
  const errorsIn = (number) => `${number} ${number === 1 ? "error" : "errors"}`;
  const haystack = new Map(data.utterances.map((u) =>
    [u, [u.id, u.split, u.speaker, u.reference, ...u.tags, ...u.variants.flatMap(wordsOf)].join(" ").toLowerCase()]));
  const side = (u, system) => u.variants[u.of[system]];

  // Fields of the search for this pair: a is null where a system is looked at alone.
  function fits(u, a, b) {
    const mine = side(u, b), gain = (a === null ? 0 : side(u, a).errors) - mine.errors;
    const kinds = {
      changed: () => (a === null ? mine.errors > 0 : u.of[a] !== u.of[b]), better: () => gain > 0, worse: () => gain < 0,
      wrong: () => mine.errors > 0, failed: () => [a, b].some((system) => system in u.failures),
      keywords: () => u.keywords.some((index) => (a === null ? 1 : side(u, a).heard[index]) !== mine.heard[index]),
      all: () => true,
    };
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return kinds[show.value]() && (!split.value || u.split === split.value) &&
      words.every((word) => haystack.get(u).includes(word));
  }

  function word(aligned, reference, index) {
    const heard = aligned.heard[index];
    if (heard === null) return element("span", "w del", "\u2014");
    return heard === 1 ? element("span", "", reference) : element("span", "w sub", heard);
  }

  function stack(cells, name) {
    const made = element("span", name ? `stack ${name}` : "stack");
    made.append(...cells);
    return made;
  }

  // One column per reference word; columns without one hold insertions, those of both systems side by side.
  function alignment(u, sides, names, ranks) {
    const made = element("div", "aligned");
    made.dir = "auto";
    const ranked = names.map((name, index) => (ranks[index] === null ? name : `${name}, rank ${ranks[index] + 1}`));
    made.append(stack(["reference", ...ranked].map((name) => element("span", "", name)), "names"));
    const inserted = sides.map((side) => {
      const places = new Map();
      for (const [place, text] of side.inserted) places.set(place, [...(places.get(place) || []), text]);
      return places;
    });
    for (let index = 0; index <= u.words.length; index += 1) {
      const extra = inserted.map((places) => places.get(index) || []);
      for (let k = 0; k < Math.max(...extra.map((list) => list.length)); k += 1) {
        made.append(stack([element("span", "none", "\u00b7"), ...extra.map((list) =>
          (k < list.length ? element("span", "w ins", list[k]) : element("span", "none", "\u00b7")))]));
      }
      if (index < u.words.length) {
        const marked = u.keywords.includes(index) ? "ref kw" : "ref";
        made.append(stack([element("span", marked, u.words[index]), ...sides.map((side) => word(side, u.words[index], index))]));
      }
    }
    return made;
  }

  function nbest(u) {
    const made = element("details");
    const best = u.nbest.rows.find((row) => row[0] === u.nbest.best);
    made.append(element("summary", "", `N-best list (${u.nbest.size}); best: rank ${best[0] + 1} with ${errorsIn(best[2])}`));
    const list = element("ul", "legend");
    for (const [rank, text, errors] of u.nbest.rows) list.append(element("li", "", `${rank + 1}. ${text || "(empty)"} (${errors})`));
    made.append(list);
    return made;
  }

  function card(u, a, b) {
    const made = element("article", "utterance");
    const shown = a === b ? [a] : [a, b];
    const sides = shown.map((system) => side(u, system));
    const names = shown.map((system) => data.systems[system]);
    const head = element("header");
    head.append(element("b", "", u.id), element("span", "", u.split));
    if (u.speaker) head.append(element("span", "", u.speaker));
    for (const tag of u.tags) head.append(element("span", "", tag));
    const gain = side(u, a).errors - side(u, b).errors;
    const counts = sides.map((one) => errorsIn(one.errors)).join(" \u2192 ");
    head.append(element("span", gain > 0 ? "good" : gain < 0 ? "bad" : "", counts));
    made.append(head);
    if (u.audio) {
      const audio = element("audio");
      audio.controls = true;
      audio.preload = "none";
      audio.src = u.audio;
      made.append(audio);
    }
    made.append(alignment(u, sides, names, shown.map((system) => u.ranks[system])));
    shown.forEach((system, index) => {
      if (system in u.failures) made.append(element("p", "note bad", `${names[index]}: ${u.failures[system]}`));
    });
    if (u.no_audio) {
      const silent = element("button", "", "\u25b6 no audio");
      silent.type = "button";
      silent.disabled = true;
      const note = element("p", "note");
      note.append(silent, ` ${u.no_audio}`);
      made.append(note);
    }
    if (u.nbest) made.append(nbest(u));
    return made;
  }

  function summary(a, b) {
    if (a === b) return `Errors of ${data.systems[a]}.`;
    const pair = data.pairs.find((p) => (p[0] === a && p[1] === b) || (p[0] === b && p[1] === a));
    const [better, worse] = pair[0] === a ? [pair[2], pair[3]] : [pair[3], pair[2]];
    return `Of ${data.num_scored.toLocaleString("en")} utterances, ${data.systems[b]} makes fewer errors than ` +
      `${data.systems[a]} in ${better.toLocaleString("en")}, more in ${worse.toLocaleString("en")}, as many with other ` +
      `words in ${pair[4].toLocaleString("en")}; ${pair[5].toLocaleString("en")} have the same words.`;
  }

  // The errors that the second system makes most often, as [times, times in the first one].
  function confusions(a, b) {
    const found = data.confusions.filter((row) => row[3][b] > 0).sort((u, v) => v[3][b] - u[3][b]).slice(0, 15);
    return found.map(([kind, wanted, heard, counts]) => {
      const made = element("span", "confusion");
      const shown = { sub: `${wanted} \u2192 ${heard}`, del: wanted, ins: heard }[kind];
      made.append(element("span", `w ${kind}`, shown), ` ${counts[b]}${a === b ? "" : ` (${counts[a]})`}`);
      return made;
    });
  }

  function draw() {
    const a = Number(from.value), b = Number(to.value);
    const one = a === b;
    const found = data.utterances.filter((u) => fits(u, one ? null : a, b));
    const gain = (u) => Math.abs(side(u, a).errors - side(u, b).errors);
    const errors = (u) => side(u, b).errors;
    const orders = {
      change: (u, v) => (one ? errors(v) - errors(u) : gain(v) - gain(u)),
      errors: (u, v) => errors(v) - errors(u),
      id: (u, v) => u.id.localeCompare(v.id, undefined, { numeric: true }),
    };
    found.sort(orders[order.value]);
    at("pair-summary").textContent = summary(a, b);
    at("confusions").replaceChildren(...confusions(a, b));
    at("utterance-count").textContent = `${Math.min(limit, found.length)} of ${found.length} shown that fit the choice ` +
      `(this page holds ${data.utterances.length} of ${data.num_scored.toLocaleString("en")} utterances).`;
    at("utterance-list").replaceChildren(...found.slice(0, limit).map((u) => card(u, a, b)));
    at("more").hidden = found.length <= limit;
    at("more").textContent = `Show ${Math.min(PAGE, found.length - limit)} more`;
  }

  options(from, data.systems, data.start[0]);
  options(to, data.systems, data.start[1]);
  options(split, [...new Set(data.utterances.map((u) => u.split))]);
  for (const control of [from, to, show, split, order, search]) {
    control.addEventListener("input", () => {
      limit = PAGE;
      draw();
    });
  }
  at("more").addEventListener("click", () => {
    limit += PAGE;
    draw();
  });
  draw();
})();
