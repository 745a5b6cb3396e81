"""What can be measured of the privacy of a step, and which bugs are found by it.

python -m benchmarks.audit.digits   the step of digits_linear at several ε, with a picture
python -m benchmarks.audit.planted  steps with bugs, each audited at the default settings
"""
