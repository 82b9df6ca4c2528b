"""recordings and text -> UTTERANCES."""
