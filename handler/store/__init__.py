"""Where a model comes from: a volume, a verified copy, S3, the Hugging Face Hub or the demo."""
