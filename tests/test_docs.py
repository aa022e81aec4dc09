"""The rules of the documentation: README, docs and the other Markdown files."""
