# make demo | test | lint. All share one virtual environment, made once and used again
# by every clone: DOMAINBED_VENV names its place.
DOMAINBED_VENV ?= $(HOME)/.cache/domainbed-venv
PYTHON ?= python3
PY := $(DOMAINBED_VENV)/bin/python
WANTED := $(DOMAINBED_VENV)/fits-$(shell sha256sum setup.py | cut -c1-16)

# Before Python starts: see domainbed/__init__.py.
TEST_WORKERS ?= auto
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test lint format install

# stderr has the progress; the text table comes while the other core draws the report.
demo: install
	rm -rf demo && mkdir demo
	$(PY) -m domainbed.scripts.sweep launch @sweeps/quickstart.txt --output_dir demo \
		--data_dir demo-data --command_launcher pool --skip_confirmation > demo/jobs.txt
	@$(PY) -m domainbed.scripts.report --input_dir demo --output demo/report.html --quiet & \
	$(PY) -m domainbed.scripts.collect_results --input_dir demo --selection iid && \
	$(PY) -m domainbed.scripts.collect_results --input_dir demo --selection iid \
		--format markdown --output demo/tables.md --quiet && wait $$!
	@echo "The report: demo/report.html. Tables with ties marked: demo/tables.md."

test: install
	$(PY) -m pytest -n $(TEST_WORKERS)

lint: install
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

format: install
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

# The dependencies when setup.py has changed; this clone's package every time.
install: $(WANTED)
	@$(PY) -m pip install -q --no-deps --no-build-isolation -e .

$(WANTED):
	$(PYTHON) -m venv $(DOMAINBED_VENV)
	$(PY) -m pip install -q "setuptools>=77.0.3,<81" wheel
	$(PY) -m pip install -q -e ".[test]"
	rm -f $(DOMAINBED_VENV)/fits-*
	touch $@
