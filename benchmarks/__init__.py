"""Measurements that the documentation quotes, in a folder per question.

- accuracy/: How accurate are private models, beside the best published figures?
- engine/: How much time and memory do private gradients take?
- paper/: How do batch clipping and layerwise clipping (arXiv 2307.11939) fare at equal ε?
- runs/: What do whole programs give, and what does the trainer cost besides its steps?

Each folder's docstring lists its commands.
"""
