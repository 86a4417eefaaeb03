# A fresh machine needs gcc, make and some Python >= 3.12. Everything else goes into .venv.
#
#   make demo                              upscale a low-quality clip made on the spot; results in demo/
#   make demo INPUT=in.mp4 [FRAMES=48]     upscale your own file (its first 48 frames), audio included
#            [OUT=demo] [THETA=5] [DETAIL=0.5] [CLEANING=1]
#   make test                              the default tests, on one worker more than there are cores
#   make test-fast                         those of them that take less than 0.3 s each: no whole programs, no long series
#   make test-oldest                       the default tests with the oldest torch that pyproject.toml promises
#   make check                             ruff, mypy and the default tests
#   make sanitize                          both C files under gcc's sanitizers, address, undefined and thread, with
#                                          frames through a real core on 8 threads: minutes; it says what is lacking
#   make docs                              the documentation's site, into build/site; a link that leads nowhere is an error
#   make clean                             remove .venv, .venv-oldest and what tools left
#
# PYTHON=/path/to/python3.12 chooses the interpreter that .venv is made with.

VENV := .venv
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest

.PHONY: demo test test-fast test-oldest check sanitize docs install clean

demo: $(INSTALLED)
	@$(VENV)/bin/python -m scripts.demo $${INPUT:+--input "$$INPUT"} $${FRAMES:+--frames "$$FRAMES"} \
		$${OUT:+--out "$$OUT"} $${THETA:+--theta "$$THETA"} \
		$${DETAIL:+--detail "$$DETAIL"} $${CLEANING:+--cleaning "$$CLEANING"}

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto

test-fast: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto -m "not slow and not long"

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest -n auto

check: $(INSTALLED)
	scripts/check

sanitize: $(INSTALLED)
	$(VENV)/bin/python -m scripts.sanitize

docs: $(INSTALLED)
	$(VENV)/bin/python -m mkdocs build --strict

install: $(INSTALLED)

# The stamp is the last thing made: an installation that failed or was interrupted is taken up again.
$(INSTALLED): pyproject.toml vsrealbasicvsr/plugin/rbvsr.c vsrealbasicvsr/plugin/build_hook.py \
		vsrealbasicvsr/backends/cpu/kernels.c
	@rm -f $@
	@python=$$(PYTHON='$(PYTHON)' sh scripts/find_python.sh) && \
		echo "installing into $(VENV) with $$python: PyTorch is some 5 GB on disk, this takes minutes" && \
		"$$python" -m venv $(VENV)
	@# The name before the first release: its files are the same ones, and its copy of the package would be imported.
	@$(VENV)/bin/python -m pip uninstall --quiet --quiet --yes vsrealbasicvsr
	$(VENV)/bin/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@

# A venv of its own, 5 GB. torchvision is bound to torch's version, so both are the oldest ones.
$(OLDEST)/.installed: pyproject.toml
	@rm -f $@
	@python=$$(PYTHON='$(PYTHON)' sh scripts/find_python.sh) && "$$python" -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --editable '.[dev]' \
		$$(sed -nE 's/^ *"(torch|torchvision)>=([0-9.]*)".*/\1==\2.*/p' pyproject.toml)
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) .editable .mypy_cache .pytest_cache .ruff_cache build dist demo
