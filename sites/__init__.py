"""What a site is and what it holds: manifest, features, prompts, and how data sets become sites."""
