/* The best path of CTC through a letter graph, frame by frame. kvarts/grammar_search.py says what it computes, and does
   the same in NumPy: both take the same numbers in the same order, so their results are equal to the bit. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLANK 33
#define SPACE 0

static inline float larger(float a, float b) { return b > a ? b : a; }

static void spaces_of_frame(const float *loss, int64_t spaces, const int32_t *first_ends, const int32_t *ends,
                            float space_penalty, const float *letter, const float *blank, float *next_letter,
                            float *next_blank, uint8_t *step, int32_t *entry) {
    for (int64_t node = 0; node < spaces; node++) {
        float best = -INFINITY;
        int32_t from = -1;
        for (int32_t i = first_ends[node]; i < first_ends[node + 1]; i++) {
            const int32_t end = ends[i];
            const float score = larger(letter[end], blank[end]);
            from = score > best || from < 0 ? 2 * end + (blank[end] > letter[end]) : from;
            best = larger(best, score);
        }
        entry[node] = from;
        const float skipped = best - space_penalty, stay = larger(letter[node], blank[node]);
        const float still = larger(blank[node], letter[node]);
        next_letter[node] = larger(stay, best) + loss[SPACE];
        next_blank[node] = larger(still, skipped) + loss[BLANK];
        const int into = best > stay ? 2 : blank[node] > letter[node];
        step[node] = (uint8_t)(into | (skipped > still ? 2 : letter[node] > blank[node]) << 2);
    }
}

/* No branches and no aliases, so that compilers make vectors of it: else random sound takes several times as long. */
static void letters_of_frame(const float *restrict loss, int64_t from, int64_t to, const int32_t *restrict labels,
                             const int32_t *restrict parents, const float *restrict barriers,
                             const float *restrict letter, const float *restrict blank, float *restrict next_letter,
                             float *restrict next_blank, uint8_t *restrict step) {
    const float of_blank = loss[BLANK];
    for (int64_t node = from; node < to; node++) {
        const float own = letter[node], own_blank = blank[node], by_blank = blank[parents[node]];
        const float by_letter = letter[parents[node]] + barriers[node], stay = larger(own, by_blank);
        next_letter[node] = larger(stay, by_letter) + loss[labels[node]];
        next_blank[node] = larger(own_blank, own) + of_blank;
        const int32_t is_blank_before = by_blank > own, is_letter_before = by_letter > stay, is_behind = own > own_blank;
        step[node] = (uint8_t)((is_letter_before ? 2 : is_blank_before) | is_behind << 2);
    }
}

/* scores: 4 · nodes floats, the room for two frames of letters and blanks; the last frame's are left in the first half,
   letters and then blanks. steps (frames, nodes) are for the way back, and so are entries (frames, spaces): 2 · node,
   plus 1 for its blank, by which a space is best entered. */
void search(const float *losses, int64_t frames, int64_t nodes, int64_t spaces, const int32_t *labels,
            const int32_t *parents, const float *barriers, const int32_t *first_ends, const int32_t *ends,
            float space_penalty, float *scores, uint8_t *steps, int32_t *entries) {
    float *now = scores, *next = scores + 2 * nodes;
    for (int64_t node = 0; node < 2 * nodes; node++)
        now[node] = -INFINITY;
    now[nodes] = 0; /* the blank of node 0 */
    for (int64_t frame = 0; frame < frames; frame++) {
        const float *loss = losses + frame * (BLANK + 1);
        uint8_t *step = steps + frame * nodes;
        spaces_of_frame(loss, spaces, first_ends, ends, space_penalty, now, now + nodes, next, next + nodes, step,
                        entries + frame * spaces);
        letters_of_frame(loss, spaces, nodes, labels, parents, barriers, now, now + nodes, next, next + nodes, step);
        float *swapped = now;
        now = next;
        next = swapped;
    }
    if (now != scores)
        memcpy(scores, now, 2 * nodes * sizeof *scores);
}
