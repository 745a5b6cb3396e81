"""What do whole programs give and cost?

Commands:
    python -m benchmarks.runs.backpack                      docs/studies/backpack.md
    python -m benchmarks.runs.forum                         docs/studies/forum.md
    python -m benchmarks.runs.overhead CONFIG.py            time of the trainer besides the steps
    python -m benchmarks.runs.reading                       waiting for records in files
    python -m benchmarks.runs.sampling                      time and memory of drawing a batch
    python -m benchmarks.runs.without_privacy CONFIG.py     accuracy of a config without privacy
"""
