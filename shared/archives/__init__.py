"""Archives of images: where they come from, what lies in them, and their bounds."""
