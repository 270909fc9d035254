"""Speech recognisers of Hugging Face transformers: folders with a config, a tokenizer and a preprocessor."""
