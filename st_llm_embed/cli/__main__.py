"""The command line as `python -m st_llm_embed.cli`, which torchrun and accelerate start."""

from st_llm_embed.cli import main

if __name__ == "__main__":
    main()
