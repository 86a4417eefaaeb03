"""The paper's studies, each in one command: python -m training study NAME --data CLIPS --out FOLDER.

A study trains variants of the network (variants.py, runs.py), measures them on held-out clips (measuring.py) and ends
in a table, plots and crops (report.py, page.py). One file for each study: it names the variants, what is measured, and
what the paper says of it. The workbench (workbench.py) keeps what is finished, so that a study can be killed at any
moment and resumed. Nothing here belongs to the product's network.
"""
