# `make run` and `make test` set everything up in .venv and do it; the second time they start in seconds.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: run test check coverage hooks clean
run: $(STAMP)
	$(BIN)/cprune run $(ARGS)

# The slowest tests are named at the end; `make test ARGS='-m ""'` runs those that take minutes as well, as CI does.
test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not device" --durations=25 $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every branch of the method is entered by its tests on fakes, or this fails and names the lines.
METHOD := loop judgement ending state history promise certify beginning tables planning scouting seconds balance chain \
	round_tables rounds plain uniform one_shot netadapt estimating comparable limits aiming limited_front sizes \
	forecast front further expected
METHOD_TESTS := method certify tables scouting seconds balance chain round_tables plain_methods netadapt estimating \
	latency limits front further expected safer
coverage: $(STAMP)
	$(BIN)/python -m pytest -q $(METHOD_TESTS:%=tests/test_%.py) $(METHOD:%=--cov=cprune.method.%) --cov-branch \
		--cov-report=term-missing --cov-fail-under=100 $(ARGS)

# `git commit` then runs what `make check` does.
hooks: $(STAMP)
	$(BIN)/pre-commit install

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench,dev]"
	@touch $(STAMP)

clean:
	rm -rf .venv
