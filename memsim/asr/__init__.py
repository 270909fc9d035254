"""Speech recognition: corpora, audio, features, tokens, models, decoding, scoring."""
