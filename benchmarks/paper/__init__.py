"""How do batch clipping and layerwise clipping, of arXiv 2307.11939, fare at equal ε?

Commands:
    python -m benchmarks.paper.clippings run|tune|tables|plot    docs/studies/clipping-paper.md
    python -m benchmarks.paper.privacy                           what the paper's noise guarantees
    python -m benchmarks.paper.figure                            draws docs/guides/clipping.png
"""
