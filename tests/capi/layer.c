// The C interface from C: a layer against the same sums written out here, every kind of error, several threads.
// scripts/capi-test compiles it with every warning and runs it under sanitizers and valgrind.

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fused_moe.h"

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            const char *error = fused_moe_last_error();                                                                \
            fprintf(stderr, "%s:%d: %s\nlast error: %s\n", __FILE__, __LINE__, #condition, error ? error : "none");    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

enum { TOKENS = 5, EXPERTS = 4, TOP_K = 2, HIDDEN = 12, INNER = 6 };

_Static_assert(sizeof(void *) != 8 || sizeof(FusedMoeTensor) == 48, "FusedMoeTensor");

static const char *CONFIG =
    "{\"num_experts\": 4, \"hidden_size\": 12, \"intermediate_size\": 6,"
    " \"router\": {\"top_k\": 2, \"score\": \"softmax\", \"renormalize\": {}},"
    " \"activation\": \"silu\", \"gate_up_layout\": \"gate_then_up\"}";

typedef struct Model {
    float router[EXPERTS * HIDDEN];
    float gate_up[EXPERTS * 2 * INNER * HIDDEN];
    float down[EXPERTS * HIDDEN * INNER];
    float hidden_states[TOKENS * HIDDEN];
} Model;

static void fill(float *values, size_t count, uint32_t *state) {
    for (size_t i = 0; i < count; i++) {
        *state = *state * 1664525u + 1013904223u;
        values[i] = (float)(*state >> 8) / (float)(1 << 23) - 1.0f;
    }
}

static Model *new_model(void) {
    Model *model = malloc(sizeof *model);
    CHECK(model != NULL);
    uint32_t state = 7;
    fill(model->router, EXPERTS * HIDDEN, &state);
    fill(model->gate_up, EXPERTS * 2 * INNER * HIDDEN, &state);
    fill(model->down, EXPERTS * HIDDEN * INNER, &state);
    fill(model->hidden_states, TOKENS * HIDDEN, &state);
    return model;
}

static double dot(const float *a, const float *b, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) sum += (double)a[i] * b[i];
    return sum;
}

// The two largest logits; the softmax over all, renormalised, is the softmax over these two.
static void route(const Model *model, const float *token, uint32_t ids[TOP_K], double weights[TOP_K]) {
    double logits[EXPERTS];
    for (uint32_t e = 0; e < EXPERTS; e++) logits[e] = dot(token, model->router + e * HIDDEN, HIDDEN);
    ids[0] = 0;
    for (uint32_t e = 1; e < EXPERTS; e++)
        if (logits[e] > logits[ids[0]]) ids[0] = e;
    ids[1] = ids[0] == 0;
    for (uint32_t e = 0; e < EXPERTS; e++)
        if (e != ids[0] && logits[e] > logits[ids[1]]) ids[1] = e;
    weights[1] = 1 / (1 + exp(logits[ids[0]] - logits[ids[1]]));
    weights[0] = 1 - weights[1];
}

static void add_expert(const Model *model, const float *token, uint32_t expert, double weight, double *sum) {
    const float *gate_up = model->gate_up + expert * 2 * INNER * HIDDEN;
    float act[INNER];
    for (size_t i = 0; i < INNER; i++) {
        double gate = dot(token, gate_up + i * HIDDEN, HIDDEN);
        double up = dot(token, gate_up + (INNER + i) * HIDDEN, HIDDEN);
        act[i] = (float)(gate / (1 + exp(-gate)) * up);
    }
    for (size_t h = 0; h < HIDDEN; h++)
        sum[h] += weight * dot(act, model->down + (expert * HIDDEN + h) * INNER, INNER);
}

static void check_output(const Model *model, const float *output, size_t num_tokens) {
    for (size_t t = 0; t < num_tokens; t++) {
        const float *token = model->hidden_states + t * HIDDEN;
        uint32_t ids[TOP_K];
        double weights[TOP_K], expected[HIDDEN] = {0};
        route(model, token, ids, weights);
        for (size_t k = 0; k < TOP_K; k++) add_expert(model, token, ids[k], weights[k], expected);
        for (size_t h = 0; h < HIDDEN; h++) CHECK(fabs(output[t * HIDDEN + h] - expected[h]) < 1e-5);
    }
}

static FusedMoeTensor tensor(void *data, FusedMoeDtype dtype, uint32_t rank, size_t a, size_t b, size_t c) {
    return (FusedMoeTensor){.data = data, .dtype = dtype, .rank = rank, .dims = {a, b, c}};
}

static FusedMoeWeights weights_of(Model *model) {
    return (FusedMoeWeights){
        .router.weight = tensor(model->router, FUSED_MOE_DTYPE_F32, 2, EXPERTS, HIDDEN, 0),
        .experts =
            {
                .gate_up_proj = tensor(model->gate_up, FUSED_MOE_DTYPE_F32, 3, EXPERTS, 2 * INNER, HIDDEN),
                .down_proj = tensor(model->down, FUSED_MOE_DTYPE_F32, 3, EXPERTS, HIDDEN, INNER),
            },
    };
}

static FusedMoeForward forward_of(Model *model, float *output, size_t num_tokens) {
    return (FusedMoeForward){
        .hidden_states = tensor(model->hidden_states, FUSED_MOE_DTYPE_F32, 2, num_tokens, HIDDEN, 0),
        .output = tensor(output, FUSED_MOE_DTYPE_F32, 2, num_tokens, HIDDEN, 0),
    };
}

static bool fails(FusedMoeStatus actual, FusedMoeStatus expected, const char *text) {
    return actual == expected && strstr(fused_moe_last_error(), text) != NULL;
}

static void test_forward(const FusedMoeLayer *layer, Model *model) {
    FusedMoeWorkspace *workspace = NULL;
    CHECK(fused_moe_workspace_new(layer, TOKENS, &workspace) == FUSED_MOE_STATUS_OK);
    CHECK(fused_moe_workspace_bytes(workspace) >= TOKENS * TOP_K * (HIDDEN + INNER) * sizeof(float));
    float output[TOKENS * HIDDEN];
    for (size_t num_tokens = 0; num_tokens <= TOKENS; num_tokens++) {
        memset(output, 0xff, sizeof output);
        FusedMoeForward args = forward_of(model, output, num_tokens);
        CHECK(fused_moe_forward(layer, &args, workspace) == FUSED_MOE_STATUS_OK);
        check_output(model, output, num_tokens);
        for (size_t i = num_tokens * HIDDEN; i < TOKENS * HIDDEN; i++) CHECK(isnan(output[i]));
    }
    fused_moe_workspace_free(workspace);
}

static void test_forward_routed(const FusedMoeLayer *layer, Model *model) {
    FusedMoeWorkspace *workspace = NULL;
    CHECK(fused_moe_workspace_new(layer, 2, &workspace) == FUSED_MOE_STATUS_OK);
    uint32_t ids[2 * TOP_K] = {3, 1, UINT32_MAX, UINT32_MAX};
    float weights[2 * TOP_K] = {0.25f, 2.0f, 1.0f, 1.0f}, output[2 * HIDDEN];
    FusedMoeForward args = forward_of(model, output, 2);
    args.topk_ids = tensor(ids, FUSED_MOE_DTYPE_U32, 2, 2, TOP_K, 0);
    args.topk_weights = tensor(weights, FUSED_MOE_DTYPE_F32, 2, 2, TOP_K, 0);
    CHECK(fused_moe_forward(layer, &args, workspace) == FUSED_MOE_STATUS_OK);
    double expected[HIDDEN] = {0};
    add_expert(model, model->hidden_states, 3, 0.25, expected);
    add_expert(model, model->hidden_states, 1, 2.0, expected);
    for (size_t h = 0; h < HIDDEN; h++) CHECK(fabs(output[h] - expected[h]) < 1e-5 && output[HIDDEN + h] == 0);
    fused_moe_workspace_free(workspace);
}

static void test_errors_of_making(const FusedMoeDevice *device, Model *model) {
    FusedMoeDevice *no_device = NULL;
    CHECK(fails(fused_moe_device_new("abacus", &no_device), FUSED_MOE_STATUS_INVALID_ARGUMENT, "got abacus"));
    CHECK(fails(fused_moe_device_new(NULL, &no_device), FUSED_MOE_STATUS_INVALID_ARGUMENT, "NULL"));
    CHECK(fails(fused_moe_device_new("cpu", NULL), FUSED_MOE_STATUS_INVALID_ARGUMENT, "NULL"));
    CHECK(no_device == NULL);

    FusedMoeLayer *layer = NULL;
    FusedMoeWeights weights = weights_of(model);
    CHECK(fails(fused_moe_layer_new(NULL, CONFIG, &weights, &layer), FUSED_MOE_STATUS_INVALID_ARGUMENT, "device"));
    CHECK(fails(fused_moe_layer_new(device, "{\"num_experts\": 4,", &weights, &layer),
                FUSED_MOE_STATUS_INVALID_ARGUMENT, "config_json"));
    CHECK(fails(fused_moe_layer_new(device, "{\"num_expert\": 4}", &weights, &layer),
                FUSED_MOE_STATUS_INVALID_ARGUMENT, "num_expert"));
    CHECK(fails(fused_moe_layer_new(device, "\xff", &weights, &layer), FUSED_MOE_STATUS_INVALID_ARGUMENT, "UTF-8"));
    weights.experts.down_proj.dims[2] += 1;
    CHECK(fails(fused_moe_layer_new(device, CONFIG, &weights, &layer), FUSED_MOE_STATUS_INVALID_ARGUMENT,
                "weights.experts.down_proj: expected shape [4, 12, 6], got [4, 12, 7]"));
    weights.experts.down_proj.dims[2] = SIZE_MAX / 8;
    CHECK(fails(fused_moe_layer_new(device, CONFIG, &weights, &layer), FUSED_MOE_STATUS_INVALID_ARGUMENT,
                "address space"));
    weights = weights_of(model);
    weights.experts.down_proj.dtype = 17;
    CHECK(fails(fused_moe_layer_new(device, CONFIG, &weights, &layer), FUSED_MOE_STATUS_INVALID_ARGUMENT, "17"));
    weights = weights_of(model);
    weights.experts.down_proj.memory = FUSED_MOE_MEMORY_CUDA;
    CHECK(fails(fused_moe_layer_new(device, CONFIG, &weights, &layer), FUSED_MOE_STATUS_UNAVAILABLE, "cuda"));
    weights = weights_of(model);
    weights.experts.gate_up_proj = (FusedMoeTensor){0};
    CHECK(fails(fused_moe_layer_new(device, CONFIG, &weights, &layer), FUSED_MOE_STATUS_INVALID_ARGUMENT,
                "gate_up_proj: expected rank 1 to 3"));
    weights = weights_of(model);
    weights.experts.gate_up_proj.data = (char *)model->gate_up + 1;
    CHECK(fails(fused_moe_layer_new(device, CONFIG, &weights, &layer), FUSED_MOE_STATUS_INVALID_ARGUMENT,
                "alignment"));
    CHECK(layer == NULL);
}

static void test_errors_of_calling(const FusedMoeLayer *layer, Model *model) {
    FusedMoeWorkspace *workspace = NULL;
    CHECK(fused_moe_workspace_new(layer, 2, &workspace) == FUSED_MOE_STATUS_OK);
    float output[TOKENS * HIDDEN];
    FusedMoeForward args = forward_of(model, output, TOKENS);
    CHECK(fails(fused_moe_forward(layer, &args, workspace), FUSED_MOE_STATUS_INVALID_ARGUMENT, "up to the workspace's 2"));
    args = forward_of(model, output, 2);
    CHECK(fails(fused_moe_forward(layer, &args, NULL), FUSED_MOE_STATUS_INVALID_ARGUMENT, "workspace"));
    CHECK(fails(fused_moe_forward(layer, NULL, workspace), FUSED_MOE_STATUS_INVALID_ARGUMENT, "args"));
    args.output.data = model->hidden_states + 2 * HIDDEN - 1;
    CHECK(fails(fused_moe_forward(layer, &args, workspace), FUSED_MOE_STATUS_INVALID_ARGUMENT, "memory of hidden_states"));
    args.output.data = model->down;
    CHECK(fails(fused_moe_forward(layer, &args, workspace), FUSED_MOE_STATUS_INVALID_ARGUMENT, "memory of a weight"));
    args = forward_of(model, output, 2);
    args.hidden_states.data = NULL;
    CHECK(fails(fused_moe_forward(layer, &args, workspace), FUSED_MOE_STATUS_INVALID_ARGUMENT, "hidden_states"));
    args = forward_of(model, output, 2);
    args.topk_weights = tensor(output, FUSED_MOE_DTYPE_F32, 2, 2, TOP_K, 0);
    CHECK(fused_moe_forward(layer, &args, workspace) == FUSED_MOE_STATUS_INVALID_ARGUMENT);
    args = forward_of(model, output, 2);
    args.stream = &args;
    CHECK(fails(fused_moe_forward(layer, &args, workspace), FUSED_MOE_STATUS_INVALID_ARGUMENT, "stream"));
    args.stream = NULL;
    CHECK(fused_moe_forward(layer, &args, workspace) == FUSED_MOE_STATUS_OK);
    check_output(model, output, 2);
    CHECK(fails(fused_moe_workspace_new(layer, SIZE_MAX / 2, &workspace), FUSED_MOE_STATUS_INVALID_ARGUMENT, "address space"));
    fused_moe_workspace_free(workspace);
}

static void test_checkpoint(const FusedMoeDevice *device) {
    FusedMoeLayer *layer = NULL;
    FusedMoeWorkspace *workspace = NULL;
    const char *directory = "tests/fixtures/qwen3_moe-bf16";
    CHECK(fails(fused_moe_layer_load(device, "tests/nowhere", NULL, &layer), FUSED_MOE_STATUS_CHECKPOINT, "nowhere"));
    CHECK(fails(fused_moe_layer_load(device, directory, "77", &layer), FUSED_MOE_STATUS_CHECKPOINT, "77"));
    CHECK(layer == NULL);
    CHECK(fused_moe_layer_load(device, directory, NULL, &layer) == FUSED_MOE_STATUS_OK);
    CHECK(fused_moe_workspace_new(layer, 1, &workspace) == FUSED_MOE_STATUS_OK);
    // Whether it computes right is tests/huggingface's business.
    float hidden_states[1] = {0}, output[1];
    FusedMoeForward args = {
        .hidden_states = tensor(hidden_states, FUSED_MOE_DTYPE_F32, 2, 1, 1, 0),
        .output = tensor(output, FUSED_MOE_DTYPE_F32, 2, 1, 1, 0),
    };
    CHECK(fails(fused_moe_forward(layer, &args, workspace), FUSED_MOE_STATUS_INVALID_ARGUMENT, "hidden_states"));
    fused_moe_workspace_free(workspace);
    fused_moe_layer_free(layer);
}

typedef struct Job {
    const FusedMoeLayer *layer;
    Model *model;
} Job;

static void *call_often(void *argument) {
    const Job *job = argument;
    CHECK(fused_moe_last_error() == NULL);
    for (int i = 0; i < 20; i++) test_forward(job->layer, job->model);
    return NULL;
}

static void test_threads(const FusedMoeLayer *layer, Model *model) {
    pthread_t threads[3];
    Job job = {layer, model};
    for (size_t i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, call_often, &job) == 0);
    for (size_t i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(void) {
    CHECK(fused_moe_abi_version() == FUSED_MOE_ABI_VERSION);
    CHECK(fused_moe_last_error() == NULL);
    Model *model = new_model();
    FusedMoeDevice *device = NULL;
    CHECK(fused_moe_device_new("cpu", &device) == FUSED_MOE_STATUS_OK);
    FusedMoeWeights weights = weights_of(model);
    FusedMoeLayer *layer = NULL;
    CHECK(fused_moe_layer_new(device, CONFIG, &weights, &layer) == FUSED_MOE_STATUS_OK);
    CHECK(fused_moe_device_synchronize(device) == FUSED_MOE_STATUS_OK);
    test_errors_of_making(device, model);
    test_checkpoint(device);
    fused_moe_device_free(device);
    test_forward(layer, model);
    test_forward_routed(layer, model);
    test_errors_of_calling(layer, model);
    test_threads(layer, model);
    fused_moe_layer_free(layer);
    fused_moe_layer_free(NULL);
    fused_moe_workspace_free(NULL);
    fused_moe_device_free(NULL);
    free(model);
    puts("ok");
    return 0;
}
