/* CTC prefix beam search with a word n-gram model, a vocabulary and hot words, and CTC alignment; see kvarts/search.py,
   which says what is searched for. search_plain.py does the same in Python, and tests hold the two together.

   A prefix (the letters so far) is a node of a tree that grows as the search goes. A node's children are made once and
   kept, so that two ways to the same letters meet in the same node, and the language model is asked once for each. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LABELS 34
#define BLANK 33
#define SPACE 0
#define SPELT 33 /* labels of the spelling model */
#define ENDED -2 /* a frame's number in which nothing is reached */

/* Vocabulary: the children of a node follow each other in the order of their letters, one for each bit of the mask. */
typedef struct {
    const uint64_t *mask;
    const int32_t *first_child;
    const int32_t *word;        /* number of the word that ends here, in the language model where it is known; -1 */
    const float *best_word;     /* highest log-probability of a single word at or below the node */
    const float *spelling;      /* (33 * 33 * 33, 33) log-probability of a label after the last three, see spelling.py */
} Vocabulary;

/* Backoff model, nodes as in kvarts.arpa.BackoffModel. */
typedef struct {
    const float *log_probability, *backoff;
    const int32_t *suffix, *word, *first_child;
    int32_t begin, end_word;
} LanguageModel;

/* Automaton over labels; state 0 stands at the beginning of a word. */
typedef struct {
    const int32_t *next;        /* (states, 33) */
    const float *reward;        /* for what ends where a word ends in this state */
    const float *promise;       /* for what may end so, taken back where it does not */
} Hotwords;

typedef struct {
    const Vocabulary *vocabulary;       /* or NULL */
    const LanguageModel *language_model;
    const Hotwords *hotwords;
    int32_t beam, is_closed;
    double width, least_log_prob, lm_weight, word_bonus, unknown_penalty, spelling_weight;
} Search;

typedef struct {
    int32_t parent, first_child, sibling;
    int32_t label;              /* -1: the beginning */
    int32_t place;              /* vocabulary node of the word so far; -1: it is none of the vocabulary */
    int32_t context;            /* language model node of the words that ended */
    int32_t hot;
    int32_t spelt;              /* state of the spelling model */
    int32_t frame;              /* the last in which it was reached */
    double spelling;            /* log-probability of the letters of the word so far */
    double fixed;               /* score of words that ended, and of what cannot be taken back */
    double bound;               /* fixed, and what may still be taken back */
    double blank, letter;       /* log-probability of all ways that end in the blank, in the label */
    double next_blank, next_letter;
} Node;

typedef struct {
    Node *nodes;
    int64_t count, room;
} Tree;

static inline double log_add(double a, double b) {
    double high = a > b ? a : b, low = a > b ? b : a;
    return low == -INFINITY ? high : high + log1p(exp(low - high));
}

/* The child of a backoff model's node by a word, or -1. */
static int32_t lm_child(const LanguageModel *lm, int32_t node, int32_t word) {
    if (node == 0)
        return word + 1;
    int32_t low = lm->first_child[node], high = lm->first_child[node + 1];
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (lm->word[middle] < word)
            low = middle + 1;
        else
            high = middle;
    }
    return low < lm->first_child[node + 1] && lm->word[low] == word ? low : -1;
}

/* log P(word | context), and the context that the next word has: the longest that says anything of it. */
static double lm_score(const LanguageModel *lm, int32_t context, int32_t word, int32_t *after) {
    double score = 0;
    int32_t child;
    while ((child = lm_child(lm, context, word)) < 0) {
        score += lm->backoff[context];
        context = lm->suffix[context];
    }
    score += lm->log_probability[child];
    while (child > 0 && lm->first_child[child] == lm->first_child[child + 1] && lm->backoff[child] == 0)
        child = lm->suffix[child];
    *after = child;
    return score;
}

/* The score of ending the word of a node, added to its `fixed`; NaN where it must not end. */
static double word_end(const Search *s, const Node *node, int32_t *context) {
    double score = node->fixed;
    int32_t word = -1;
    *context = node->context;
    if (s->vocabulary) {
        if (node->place >= 0)
            word = s->vocabulary->word[node->place];
        if (word < 0) {
            if (s->is_closed)
                return NAN;
            score += s->spelling_weight * s->vocabulary->spelling[node->spelt * SPELT];
            if (node->place >= 0) /* where the word left the vocabulary, that is paid for */
                score += s->unknown_penalty + s->spelling_weight * node->spelling;
        }
    }
    if (s->language_model) /* word 2 is <unk> */
        score += s->lm_weight * lm_score(s->language_model, node->context, word < 0 ? 2 : word, context);
    if (s->hotwords)
        score += s->hotwords->reward[node->hot];
    return score + s->word_bonus;
}

/* The highest `bound` behind the end of this node's word: log-probabilities and penalties are 0 at most. */
static double most_behind(const Search *s, const Node *node) {
    double most = node->fixed + s->word_bonus;
    if (s->hotwords)
        most += s->hotwords->reward[node->hot] + s->hotwords->promise[s->hotwords->next[node->hot * (LABELS - 1)]];
    return most;
}

/* The node that follows another by a label, as yet outside the tree; 0 where there is none. */
static int follow(const Search *s, const Node *parent, int32_t label, Node *child) {
    memset(child, 0, sizeof *child);
    child->first_child = child->sibling = child->frame = -1;
    child->label = label;
    child->place = child->hot = 0;
    double promise = 0;
    if (label == SPACE) {
        child->fixed = word_end(s, parent, &child->context);
        if (isnan(child->fixed))
            return 0;
    } else {
        child->fixed = parent->fixed;
        child->context = parent->context;
        if (s->vocabulary) {
            child->place = -1;
            child->spelt = (parent->spelt * SPELT + label) % (SPELT * SPELT * SPELT);
            double spelling = s->vocabulary->spelling[parent->spelt * SPELT + label];
            child->spelling = parent->spelling + spelling;
            if (parent->place >= 0) {
                uint64_t mask = s->vocabulary->mask[parent->place], bit = (uint64_t)1 << label;
                if (mask & bit) {
                    int32_t before = __builtin_popcountll(mask & (bit - 1));
                    child->place = s->vocabulary->first_child[parent->place] + before;
                    promise = s->lm_weight * s->vocabulary->best_word[child->place];
                } else {
                    if (s->is_closed)
                        return 0;
                    child->fixed += s->unknown_penalty + s->spelling_weight * child->spelling;
                }
            } else
                child->fixed += s->spelling_weight * spelling;
        }
    }
    if (s->hotwords) {
        child->hot = s->hotwords->next[parent->hot * (LABELS - 1) + label];
        promise += s->hotwords->promise[child->hot];
    }
    child->bound = child->fixed + promise;
    child->blank = child->letter = child->next_blank = child->next_letter = -INFINITY;
    return 1;
}

static int32_t find_child(const Tree *tree, int32_t parent, int32_t label) {
    int32_t child = tree->nodes[parent].first_child;
    while (child >= 0 && tree->nodes[child].label != label)
        child = tree->nodes[child].sibling;
    return child;
}

static int32_t add_child(Tree *tree, int32_t parent, const Node *node) {
    if (tree->count == tree->room) {
        Node *larger = realloc(tree->nodes, 2 * (size_t)tree->room * sizeof *larger);
        if (!larger)
            return -1;
        tree->nodes = larger;
        tree->room *= 2;
    }
    int32_t number = (int32_t)tree->count++;
    tree->nodes[number] = *node;
    tree->nodes[number].parent = parent;
    tree->nodes[number].sibling = tree->nodes[parent].first_child;
    tree->nodes[parent].first_child = number;
    return number;
}

typedef struct {
    double score;
    int32_t node;
} Ranked;

/* Best first; of equals the one that was made first. */
static int compare(const void *a, const void *b) {
    const Ranked *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->node < y->node ? -1 : x->node > y->node;
}

typedef struct {
    Ranked *items;
    int64_t count, room;
} List;

static int reach(Tree *tree, List *list, int32_t number, int32_t frame) {
    Node *node = &tree->nodes[number];
    if (node->frame == frame)
        return 1;
    node->frame = frame;
    node->next_blank = node->next_letter = -INFINITY;
    if (list->count == list->room) {
        Ranked *larger = realloc(list->items, 2 * (size_t)list->room * sizeof *larger);
        if (!larger)
            return 0;
        list->items = larger;
        list->room *= 2;
    }
    list->items[list->count++].node = number;
    return 1;
}

/* Moves the `kept` best to the front (in no order): Hoare's selection. */
static void select_best(Ranked *items, int64_t count, int64_t kept) {
    int64_t low = 0, high = count - 1;
    while (low < high) {
        Ranked pivot = items[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (compare(&items[i], &pivot) < 0)
                i++;
            while (compare(&items[j], &pivot) > 0)
                j--;
            if (i <= j) {
                Ranked swapped = items[i];
                items[i++] = items[j];
                items[j--] = swapped;
            }
        }
        if (kept - 1 <= j)
            high = j;
        else if (kept - 1 >= i)
            low = i;
        else
            return;
    }
}

/* One frame: from the nodes of `active` to those of `reached`, with their new log-probabilities. */
static int step(const Search *s, Tree *tree, const List *active, List *reached, const float *log_probs, int32_t frame) {
    int32_t labels[LABELS], num_labels = 0;
    int32_t best = 0;
    for (int32_t label = 1; label < LABELS; label++)
        if (log_probs[label] > log_probs[best])
            best = label;
    for (int32_t label = 0; label < BLANK; label++)
        if (log_probs[label] >= s->least_log_prob || label == best)
            labels[num_labels++] = label;
    /* What stays behind the best one's way without a new letter will not be among those that are kept. */
    double least = -INFINITY;
    for (int64_t i = 0; i < active->count; i++) {
        const Node *node = &tree->nodes[active->items[i].node];
        double stays = log_add(node->blank, node->letter) + log_probs[BLANK] + node->bound - s->width;
        if (stays > least)
            least = stays;
    }
    reached->count = 0;
    for (int64_t i = 0; i < active->count; i++) {
        int32_t number = active->items[i].node;
        if (!reach(tree, reached, number, frame))
            return 0;
        Node *node = &tree->nodes[number];
        double total = log_add(node->blank, node->letter);
        node->next_blank = log_add(node->next_blank, total + log_probs[BLANK]);
        if (node->label >= 0)
            node->next_letter = log_add(node->next_letter, node->letter + log_probs[node->label]);
        for (int32_t k = 0; k < num_labels; k++) {
            int32_t label = labels[k];
            double from = label == node->label ? node->blank : total;
            if (from == -INFINITY)
                continue;
            double score = from + log_probs[label];
            if (label == SPACE && node->label <= SPACE) { /* between words, a space says nothing new */
                node->next_blank = log_add(node->next_blank, score);
                continue;
            }
            int32_t child = find_child(tree, number, label);
            if (child < 0) {
                Node made;
                /* Spares the language model. A word may be likelier in its place than `bound` has it. */
                if (label == SPACE && score + most_behind(s, node) < least)
                    continue;
                if (!follow(s, node, label, &made) || score + made.bound < least)
                    continue;
                child = add_child(tree, number, &made);
                if (child < 0)
                    return 0;
                node = &tree->nodes[number]; /* the tree may have moved */
            }
            if (!reach(tree, reached, child, frame))
                return 0;
            tree->nodes[child].next_letter = log_add(tree->nodes[child].next_letter, score);
        }
    }
    return 1;
}

/* Keeps the best nodes of `reached`, at most `beam` and none that is `width` behind the best. */
static void prune(const Search *s, Tree *tree, List *reached) {
    double best = -INFINITY;
    for (int64_t i = 0; i < reached->count; i++) {
        Node *node = &tree->nodes[reached->items[i].node];
        node->blank = node->next_blank;
        node->letter = node->next_letter;
        reached->items[i].score = log_add(node->blank, node->letter) + node->bound;
        if (reached->items[i].score > best)
            best = reached->items[i].score;
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < reached->count; i++)
        if (reached->items[i].score >= best - s->width)
            reached->items[kept++] = reached->items[i];
    reached->count = kept;
    if (kept > s->beam) {
        select_best(reached->items, kept, s->beam);
        reached->count = s->beam;
    }
    qsort(reached->items, reached->count, sizeof(Ranked), compare);
}

/* The text of a node at the end of the utterance: -1 if its last word must not end. Its score without the sound. */
static int32_t ended(const Search *s, const Tree *tree, int32_t number, int drop_last, double *score) {
    const Node *node = &tree->nodes[number];
    int32_t context;
    if (drop_last)
        while (node->label > SPACE)
            node = &tree->nodes[number = node->parent];
    *score = node->label > SPACE ? word_end(s, node, &context) : node->fixed;
    if (node->label <= SPACE)
        context = node->context;
    if (isnan(*score))
        return -1;
    if (s->language_model)
        *score += s->lm_weight * lm_score(s->language_model, context, s->language_model->end_word, &context);
    return node->label == SPACE ? node->parent : number;
}

/* Turns `active` into the texts that it stands for, best first. With and without a space behind is the same text. */
static void finish(const Search *s, Tree *tree, List *active) {
    int64_t kept = 0;
    /* Where no last word is whole, as in a recording that breaks off, it is left out. */
    for (int drop_last = 0; drop_last < 2 && kept == 0; drop_last++)
        for (int64_t i = 0; i < active->count; i++) {
            double score;
            const Node *node = &tree->nodes[active->items[i].node];
            double sound = log_add(node->blank, node->letter);
            int32_t text = ended(s, tree, active->items[i].node, drop_last, &score);
            if (text < 0)
                continue;
            Node *same = &tree->nodes[text];
            if (same->frame == ENDED) {
                same->next_blank = log_add(same->next_blank, sound);
                continue;
            }
            same->frame = ENDED;
            same->next_blank = sound;
            same->next_letter = score;
            active->items[kept++].node = text;
        }
    for (int64_t i = 0; i < kept; i++) {
        const Node *node = &tree->nodes[active->items[i].node];
        active->items[i].score = node->next_blank + node->next_letter;
    }
    active->count = kept;
    qsort(active->items, kept, sizeof(Ranked), compare);
}

/* The best texts of log_probs (frames, 34): their labels (wanted, frames), numbers of labels (wanted,) and scores
   (wanted, 2): log-probability of the sound, and all that is added to it. Gives their number, or -1 without memory. */
int64_t beam_search(const Search *s, const float *log_probs, int64_t frames, int64_t wanted, int32_t *labels,
                    int64_t *lengths, double *scores) {
    Tree tree = {malloc(1024 * sizeof(Node)), 1, 1024};
    List active = {malloc(256 * sizeof(Ranked)), 1, 256}, reached = {malloc(256 * sizeof(Ranked)), 0, 256};
    int64_t found = -1;
    if (!tree.nodes || !active.items || !reached.items)
        goto out;
    Node *root = tree.nodes;
    memset(root, 0, sizeof *root);
    root->parent = root->first_child = root->sibling = root->label = root->frame = -1;
    root->context = s->language_model ? s->language_model->begin : 0;
    root->letter = -INFINITY;
    active.items[0] = (Ranked){0, 0};
    for (int64_t frame = 0; frame < frames; frame++) {
        if (!step(s, &tree, &active, &reached, log_probs + frame * LABELS, (int32_t)frame))
            goto out;
        prune(s, &tree, &reached);
        List swapped = active;
        active = reached;
        reached = swapped;
    }
    finish(s, &tree, &active);
    found = active.count < wanted ? active.count : wanted;
    for (int64_t i = 0; i < found; i++) {
        int64_t length = 0;
        for (int32_t node = active.items[i].node; tree.nodes[node].label >= 0; node = tree.nodes[node].parent)
            length++;
        lengths[i] = length;
        for (int32_t node = active.items[i].node; tree.nodes[node].label >= 0; node = tree.nodes[node].parent)
            labels[i * frames + --length] = tree.nodes[node].label;
        scores[2 * i] = tree.nodes[active.items[i].node].next_blank;
        scores[2 * i + 1] = tree.nodes[active.items[i].node].next_letter;
    }
out:
    free(tree.nodes);
    free(active.items);
    free(reached.items);
    return found;
}

/* The most probable way of log_probs (frames, 34) through labels (count,): first frame of each and the one behind its
   last, (count,) each. Spaces at the ends and doubled ones pass for blanks. 1: found, 0: too few frames, -1: no memory. */
int64_t align(const float *log_probs, int64_t frames, const int32_t *labels, int64_t count, int32_t *starts,
              int32_t *stops) {
    int64_t states = 2 * count + 1;
    double *scores = malloc(2 * states * sizeof *scores);
    int8_t *back = malloc((frames ? frames : 1) * states);
    int64_t result = -1;
    if (!scores || !back)
        goto out;
    double *before = scores, *now = scores + states;
    for (int64_t state = 0; state < states; state++)
        before[state] = state == 0 ? 0 : -INFINITY;
    for (int64_t frame = 0; frame < frames; frame++) {
        const float *row = log_probs + frame * LABELS;
        double either = row[BLANK] > row[SPACE] ? row[BLANK] : row[SPACE];
        for (int64_t state = 0; state < states; state++) {
            double best = before[state];
            int8_t from = 0;
            if (state >= 1 && before[state - 1] > best)
                best = before[state - 1], from = 1;
            if (state >= 3 && state % 2 && labels[state / 2] != labels[state / 2 - 1] && before[state - 2] > best)
                best = before[state - 2], from = 2;
            if (state % 2)
                best += row[labels[state / 2]];
            else if (state == 0 || state == states - 1 || labels[state / 2 - 1] == SPACE)
                best += either;
            else
                best += row[BLANK];
            now[state] = best;
            back[frame * states + state] = from;
        }
        double *swapped = before;
        before = now;
        now = swapped;
    }
    int64_t state = states - 1;
    if (states > 1 && before[states - 2] >= before[states - 1])
        state = states - 2;
    result = before[state] > -INFINITY;
    if (!result)
        goto out;
    for (int64_t i = 0; i < count; i++)
        stops[i] = 0;
    for (int64_t frame = frames - 1; frame >= 0; frame--) {
        if (state % 2) {
            starts[state / 2] = (int32_t)frame;
            if (!stops[state / 2])
                stops[state / 2] = (int32_t)frame + 1;
        }
        state -= back[frame * states + state];
    }
out:
    free(scores);
    free(back);
    return result;
}
