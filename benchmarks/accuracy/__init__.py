"""How accurate are private models at a given ε, beside the best published figures?

Commands:
    python -m benchmarks.accuracy run ROW           trains a row of docs/accuracy.md
    python -m benchmarks.accuracy table             the table of docs/accuracy.md
    python -m benchmarks.accuracy plot              docs/accuracy.png

`rows.py` says what the rows are. `results/` holds a file of JSON for every run.
"""
