"""Released vision-language models: loaded from their authors' folders, and asked frame by frame."""
