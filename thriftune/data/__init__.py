"""From rows in a file to tokenized train and validation Parquet: sources, formats, tokenization, preparation."""
