# make demo: learn, forget and swap digits. make table: all methods on them.
# make test: everything is checked.
# Another Python: make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
# Python 3.11 on Linux gets what requirements.lock holds, each file with its hash;
# others get the newest within the bounds of requirements.txt.
LOCKED := $(shell $(PYTHON) -c "import sys; print(*['yes'] * \
  (sys.version_info[:2] == (3, 11) and sys.platform == 'linux'))")
REQUIRED := $(if $(LOCKED),--require-hashes -r requirements.lock,\
  -r requirements.txt -r .ci/requirements.txt)

SWAPS := swap_lf swap_fl
LEARN := lora_sub ranpac masked_head finetune joint
# Two at a time, the longest first.
RUNS := forget $(SWAPS) joint $(filter-out joint,$(LEARN))
# Rows of docs/results.md that the demo leaves out.
MORE := coda_prompt inflora lora head nearest_mean

.PHONY: demo table picture test lint types install clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt .ci/requirements.txt requirements.lock
	@echo "Installing into $(VENV): 1 to 3 minutes, most of them the download."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(REQUIRED)
	touch $@

demo: install
	@echo "Demo: $(words l2p $(RUNS)) runs, under 5 minutes on 2 cores." \
	  "The first also makes the upstream weights."
	@echo "1 of $(words l2p $(RUNS)): l2p"
	@$(BIN)/python main.py --my_config configs/digits_l2p.py \
	  --workdir $(DEMO)/l2p
	@$(MAKE) --no-print-directory -j2 $(addprefix run-,$(RUNS)) ALL="l2p $(RUNS)"
	@$(BIN)/python -m libml.results.tables $(addprefix $(DEMO)/,l2p $(LEARN))
	@$(BIN)/python -m libml.results.tables $(DEMO)/forget
	@$(BIN)/python -m models.edits $(DEMO)/forget
	@$(BIN)/python -m libml.results.tables $(addprefix $(DEMO)/,$(SWAPS))

table: demo
	@$(MAKE) --no-print-directory -j2 $(addprefix run-,$(MORE)) ALL="$(MORE)"
	@$(BIN)/python -m libml.results.tables \
	  $(addprefix $(DEMO)/,l2p $(LEARN) $(MORE))

run-forget: CONFIG = digits_gs_lora.py
run-swap_lf: CONFIG = digits_swap.py:order=lf
run-swap_fl: CONFIG = digits_swap.py:order=fl
run-coda_prompt: CONFIG = digits_coda_prompt.py
run-lora_sub: CONFIG = digits_lora_sub.py
run-%: CONFIG = digits_reference.py:method=$*
run-%:
	@began=$$(date +%s); \
	number=$$(echo $(ALL) | tr ' ' '\n' | grep -nx $* | cut -d: -f1); \
	echo "$$number of $(words $(ALL)): $*, started; log: $(DEMO)-$*.log"; \
	$(BIN)/python main.py --my_config configs/$(CONFIG) --workdir $(DEMO)/$* \
	  > $(DEMO)-$*.log 2>&1 || { cat $(DEMO)-$*.log; exit 1; }; \
	echo "$$number of $(words $(ALL)): $*, $$(( $$(date +%s) - began )) s"

# README's picture, of a finished demo.
picture:
	$(BIN)/python -m libml.results.plot docs/demo.png \
	  $(addprefix $(DEMO)/,l2p forget swap_lf)

# Not the files of many tests first: what takes longest has few.
test: install
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyrefly check

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache
