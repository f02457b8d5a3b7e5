"""Code generated from the repository's proto/ folder (`make proto`); never edited by hand."""
