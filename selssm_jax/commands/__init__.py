"""The commands `selssm-train` and `selssm-eval`: their flags, and what each does with them."""
