# `make run` and `make test` set everything up in .venv and do it; the second time they start in seconds.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: run test lint clean
run: $(STAMP)
	$(BIN)/cprune run $(ARGS)

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not device" $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench,dev]"
	@touch $(STAMP)

clean:
	rm -rf .venv
