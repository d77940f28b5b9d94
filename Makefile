# make demo: the main job on embedded data. make test: everything is checked.
# Another Python: make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= runs/demo
RUNS := coda_prompt lora_sub finetune head masked_head lora inflora nearest_mean ranpac joint

SWAPS := swap_lf swap_fl

.PHONY: demo picture test lint types install clean

install: $(VENV)/installed

$(VENV)/installed: requirements.txt .ci/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt \
	  -r .ci/requirements.txt
	touch $@

demo: install
	$(BIN)/python main.py --my_config configs/digits_l2p.py \
	  --workdir $(DEMO)/l2p
	@$(MAKE) --no-print-directory -j2 $(addprefix run-,forget $(SWAPS) $(RUNS))
	@$(BIN)/python -m libml.results.tables $(DEMO)/l2p $(addprefix $(DEMO)/,$(RUNS))
	@$(BIN)/python -m libml.results.tables $(DEMO)/forget
	@$(BIN)/python -m models.edits $(DEMO)/forget
	@$(BIN)/python -m libml.results.tables $(addprefix $(DEMO)/,$(SWAPS))

run-forget: CONFIG = digits_gs_lora.py
run-swap_lf: CONFIG = digits_swap.py:order=lf
run-swap_fl: CONFIG = digits_swap.py:order=fl
run-coda_prompt: CONFIG = digits_coda_prompt.py
run-lora_sub: CONFIG = digits_lora_sub.py
run-%: CONFIG = digits_reference.py:method=$*
run-%:
	@echo "beside it: $*"
	@$(BIN)/python main.py --my_config configs/$(CONFIG) --workdir $(DEMO)/$* \
	  > $(DEMO)-$*.log 2>&1 || { cat $(DEMO)-$*.log; exit 1; }

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
