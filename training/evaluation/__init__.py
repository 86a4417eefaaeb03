"""`python -m training evaluate`.

From the inside out: detail, libraries, visible (beside metrics); pairs (clips and their degradation); scoring; peers
(other programs' enlargements), reports and sheets (what is printed, written and drawn).
"""
