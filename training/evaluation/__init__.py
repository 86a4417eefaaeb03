"""What `python -m training evaluate` is made of.

From the inside out: detail, libraries, visible (beside evaluation.metrics); pairs (clips and what befalls them);
scoring; peers (other programs' enlargements), reports and sheets (what is printed, written and shown).
"""
