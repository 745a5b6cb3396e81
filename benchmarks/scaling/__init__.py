"""What does each device do, hold and send, where several share a step?

Command:
    python -m benchmarks.scaling
"""
