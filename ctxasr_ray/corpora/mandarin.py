"""A seeded corpus of spoken Mandarin commands full of rare names, with a few English words in between.

Names are made of characters that sound alike and are written in many ways, so that nobody can spell them by ear: a
list of them is what helps. Speakers and names are disjoint between splits, as in `synthetic`, whose voices, noises and
files it uses. The voice is espeak-ng's `cmn`.
"""

import functools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from ctxasr_ray.corpora.names import listed, pick
from ctxasr_ray.corpora.sentences import Sentence
from ctxasr_ray.corpora.synthetic import SyntheticConfig

MIN_CHARACTERS: Final = 10
MAX_CHARACTERS: Final = 26
"""Bounds of a sentence; espeak-ng says four to five characters a second."""
NAMES: Final[Mapping[str, int]] = {"train": 2400, "dev": 300, "test": 700}
"""Split -> distinct names of each kind."""

_SURNAMES: Final = listed(
    "王 李 张 刘 陈 杨 赵 黄 周 吴 徐 孙 胡 朱 高 林 何 郭 马 罗 梁 "
    "宋 郑 谢 韩 唐 冯 于 董 萧 程 曹 袁 邓 许 傅 沈 曾 彭 吕"
)
_GIVEN: Final = listed(
    "伟 薇 威 维 芳 方 娜 敏 民 静 敬 境 丽 立 力 强 磊 蕾 军 君 钧 洋 阳 勇 咏 艳 燕 雁 杰 洁 娟 涛 明 鸣 名 超 "
    "秀 霞 平 萍 刚 桂 英 瑛 颖 辉 慧 惠 玲 玉 宇 雨 钰 建 健 文 雯 "
    "博 波 思 斯 诗 远 源 媛 清 青 晴 轩 宣 萱 子 梓 紫 涵 寒 晗 欣 新 馨 怡 宜 仪"
)
_PLACES: Final = listed(
    "青 清 石 时 白 百 沙 杉 云 芸 龙 隆 泉 全 溪 西 柳 留 桃 陶 梅 眉 松 嵩 竹 竺 南 楠 东 冬 金 锦 银 盐 花 华"
)
_PLACE_ENDS: Final = listed("镇 村 县 港 桥 湾 岭 坡 湖 山 寺 庄")
_SOUNDS: Final = listed(
    "阿 啊 莫 默 西 希 诺 洛 络 雷 类 克 柯 尔 米 迷 塔 塞 赛 比 必 舒 苏 素 拉 辣 加 佳 多 朵 福 富 伏 地 迪 帝"
)
_DRUG_ENDS: Final = listed("林 汀 酮 平 沙坦 洛尔 唑 霉素 普利 他定")
_BRAND_ENDS: Final = listed("通 宝 达 乐 特 斯 康 泰 讯 酷 科技 软件")
_COMMON: Final[Mapping[str, tuple[str, ...]]] = {
    "time": listed("明天 后天 今天晚上 下午三点 早上八点 周五 星期一 下个月 十分钟以后 中午十二点"),
    "place": listed("医院 火车站 机场 学校 银行 超市 邮局 图书馆 公园 酒店"),
    "task": listed("开会 吃饭 报告 合同 付款 面试 生日 订单 发票 会议"),
    "app": listed("email app wifi vip ok web blog menu"),
    "polite": ("请", "请你", "麻烦你", "帮我", ""),
}
_TEMPLATES: Final = (
    "<polite>给{person}打电话说<time><task>",
    "<polite>发email给{person}确认<task>",
    "<polite>提醒我<time>和{person}去<place>",
    "<polite>导航到{town}的<place>",
    "<polite>查一下<time>去{town}的火车票",
    "<time>从{town}到{town}要多久",
    "<polite>在app里搜索{product}",
    "<polite>把{product}的<app>加到购物车",
    "医生给{person}开了{drug}",
    "<polite>提醒{person}<time>吃{drug}",
    "{drug}和{drug}可以一起吃吗",
    "<polite>告诉{person}我<time>到{town}",
    "{person}在{product}公司工作",
    "<polite>打开{product}的<app>看<task>",
    "<polite>预约{town}<place>的{person}医生",
    "<time>{person}要去{town}<task>",
    "<polite>买两盒{drug}送到{town}<place>",
    "{product}的vip客服电话是多少",
)
_SLOT: Final = re.compile(r"<(\w+)>|\{(\w+)\}")
_KINDS: Final = ("person", "town", "drug", "product")


@dataclass(frozen=True, kw_only=True, slots=True)
class MandarinConfig(SyntheticConfig):
    """Which utterances of spoken Mandarin there are; equal configs give equal samples in every process."""

    CORPUS: ClassVar[str] = "synthetic_mandarin"
    LANGUAGE: ClassVar[str] = "zh"
    ACCENTS: ClassVar[tuple[str, ...]] = ("cmn",)

    def sentence(self, split: str, index: int) -> Sentence:
        """Gives the text, without spaces, and the names in it."""
        rng = random.Random(f"{self.seed}/mandarin/{split}/{index}/sentence")
        while True:
            keywords: list[str] = []
            text = _SLOT.sub(functools.partial(self._filled, rng, split, keywords), pick(rng, _TEMPLATES))
            if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
                return Sentence(text, tuple(dict.fromkeys(keywords)))

    def phrase(self, rng: random.Random, split: str) -> str:
        """Draws one name of a split."""
        return pick(rng, names(self.seed)[split][pick(rng, _KINDS)])

    def rare_words(self, split: str) -> frozenset[str]:
        """Every name of the split; none stands in another one."""
        return frozenset(name for kind in names(self.seed)[split].values() for name in kind)

    def _filled(self, rng: random.Random, split: str, keywords: list[str], slot: "re.Match[str]") -> str:
        common, kind = slot.groups()
        if common:
            return pick(rng, _COMMON[common])
        keywords.append(pick(rng, names(self.seed)[split][kind]))
        return keywords[-1]


@functools.lru_cache(maxsize=4)
def names(seed: int) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Split -> kind -> names; every name stands in one split only."""
    made: dict[str, dict[str, tuple[str, ...]]] = {split: {} for split in NAMES}
    for kind in _KINDS:
        rng = random.Random(f"{seed}/mandarin/names/{kind}")
        pool: dict[str, None] = {}
        while len(pool) < sum(NAMES.values()):
            pool[_name(rng, kind)] = None
        left = iter(pool)
        for split, size in NAMES.items():
            made[split][kind] = tuple(next(left) for _ in range(size))
    return made


@functools.cache
def characters() -> str:
    """Every character that a sentence may hold, sorted: what a recogniser of this corpus writes."""
    plain = "".join([_SLOT.sub("", template) for template in _TEMPLATES])
    parts = (*_SURNAMES, *_GIVEN, *_PLACES, *_PLACE_ENDS, *_SOUNDS, *_DRUG_ENDS, *_BRAND_ENDS)
    common = "".join(word for words in _COMMON.values() for word in words)
    return "".join(sorted({*plain, *common, *"".join(parts)}))


def _name(rng: random.Random, kind: str) -> str:
    if kind == "person":
        return pick(rng, _SURNAMES) + "".join(pick(rng, _GIVEN) for _ in range(pick(rng, (1, 2, 2))))
    if kind == "town":
        return "".join(pick(rng, _PLACES) for _ in range(pick(rng, (1, 2, 2)))) + pick(rng, _PLACE_ENDS)
    ends = _DRUG_ENDS if kind == "drug" else _BRAND_ENDS
    return "".join(pick(rng, _SOUNDS) for _ in range(2)) + pick(rng, ends)
