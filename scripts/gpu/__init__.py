"""A quarter of an hour on a GPU machine without network: what to take there, and what to run there.

python -m scripts.gpu pack --photographs FOLDER --videos FOLDER --start runs/a     # here, into .gpu/
python -m scripts.gpu measure --seconds 560 --out OUT                              # there; `pack` prints the call
python -m scripts.gpu measure --tiny --seconds 120 --out OUT                       # a dry run, on a CPU
"""
