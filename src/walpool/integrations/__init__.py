"""walpool in other people's systems; each module needs the extra of its name."""
