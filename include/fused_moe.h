// fused-moe: kernels for Mixture-of-Experts inference. Generated from src/capi/ by cbindgen; do not edit.
//
// Handles are opaque and freed by their _free function; NULL is refused with an error, and freeing NULL does nothing.
// A function that can fail returns a FusedMoeStatus and leaves its text for fused_moe_last_error.
//
// Threads: devices and layers may be used by several threads at once; a workspace by one call at a time, a second one at
// the same time gets an error. Errors belong to the thread that made them. Freeing a handle that a call uses is not
// allowed.

#ifndef FUSED_MOE_H
#define FUSED_MOE_H

#include <stddef.h>
#include <stdint.h>

// Changes with every change of the header that a compiled caller would notice.
#define FUSED_MOE_ABI_VERSION 1

// How a call ended.
typedef enum FusedMoeStatus {
    // Done.
    FUSED_MOE_STATUS_OK = 0,
    // The caller's mistake; the text names the argument, what was expected and what came.
    FUSED_MOE_STATUS_INVALID_ARGUMENT = 1,
    // Hardware, driver or build lacks the backend.
    FUSED_MOE_STATUS_UNAVAILABLE = 2,
    // Valid, and not implemented by this backend.
    FUSED_MOE_STATUS_UNSUPPORTED = 3,
    // The device or its driver failed.
    FUSED_MOE_STATUS_DEVICE = 4,
    // A checkpoint on disk is not what it should be.
    FUSED_MOE_STATUS_CHECKPOINT = 5,
    // A bug in the library. The handles of the call should not be used again.
    FUSED_MOE_STATUS_PANIC = 6,
} FusedMoeStatus;

// The type of a tensor's elements.
typedef enum FusedMoeDtype {
    // IEEE binary32.
    FUSED_MOE_DTYPE_F32 = 0,
    // IEEE binary16.
    FUSED_MOE_DTYPE_F16 = 1,
    // bfloat16.
    FUSED_MOE_DTYPE_BF16 = 2,
    // Unsigned 32-bit integer.
    FUSED_MOE_DTYPE_U32 = 3,
} FusedMoeDtype;

// Where a tensor's elements lie.
typedef enum FusedMoeMemory {
    // Host memory.
    FUSED_MOE_MEMORY_HOST = 0,
    // Memory of a CUDA device, `data` being a CUdeviceptr. This version has no CUDA backend and answers
    // FUSED_MOE_STATUS_UNAVAILABLE.
    FUSED_MOE_MEMORY_CUDA = 1,
} FusedMoeMemory;

// A device. It may be used by several threads at once, and freed before the layers that were made on it.
typedef struct FusedMoeDevice FusedMoeDevice;

// A layer. Several threads may call it at once, each with a workspace of its own.
typedef struct FusedMoeLayer FusedMoeLayer;

// The memory between a layer's steps. One call at a time may use it: a second one at the same time gets
// FUSED_MOE_STATUS_INVALID_ARGUMENT.
typedef struct FusedMoeWorkspace FusedMoeWorkspace;

// A dense row-major tensor in the caller's memory. All zero stands for no tensor, where one is optional.
typedef struct FusedMoeTensor {
    // The first element, aligned for its type. Only an output is written to.
    void *data;
    // A FusedMoeDtype.
    uint32_t dtype;
    // A FusedMoeMemory.
    uint32_t memory;
    // 1 to 3; 0 for no tensor.
    uint32_t rank;
    // The first `rank` count, outermost first.
    size_t dims[3];
} FusedMoeTensor;

// The router's weights.
typedef struct FusedMoeRouter {
    // [E, H], or none where the caller routes; [E, R] behind a hidden layer.
    struct FusedMoeTensor weight;
    // [R, H], optional: a hidden layer before the logits.
    struct FusedMoeTensor hidden;
    // `[E]` f32, optional: added to the logits.
    struct FusedMoeTensor bias;
    // `[E]` f32, optional: added to the scores to choose by.
    struct FusedMoeTensor selection_bias;
} FusedMoeRouter;

// A stack of experts.
typedef struct FusedMoeExperts {
    // [E, 2I, H], or [E, I, H] without a gate; [E, H, 2I] where weight_layout is "kn".
    struct FusedMoeTensor gate_up_proj;
    // [E, 2I] f32, optional.
    struct FusedMoeTensor gate_up_bias;
    // [E, H, I]; [E, I, H] where weight_layout is "kn".
    struct FusedMoeTensor down_proj;
    // [E, H] f32, optional.
    struct FusedMoeTensor down_bias;
} FusedMoeExperts;

// The projections around experts that work in a latent space of L features.
typedef struct FusedMoeLatent {
    // [1, L, H].
    struct FusedMoeTensor down;
    // [1, L] f32, optional.
    struct FusedMoeTensor down_bias;
    // [1, H, L].
    struct FusedMoeTensor up;
    // [1, H] f32, optional.
    struct FusedMoeTensor up_bias;
} FusedMoeLatent;

// A layer's weights; what the configuration does not have is all zero.
typedef struct FusedMoeWeights {
    // The router.
    struct FusedMoeRouter router;
    // The routed experts.
    struct FusedMoeExperts experts;
    // The shared expert: a stack of one.
    struct FusedMoeExperts shared;
    // [1, H]: the sigmoid gate on the shared expert's output.
    struct FusedMoeTensor shared_gate;
    // The latent projections.
    struct FusedMoeLatent latent;
} FusedMoeWeights;

// The tensors of one call; T up to the workspace's max_tokens.
typedef struct FusedMoeForward {
    // [T, H] f32, bf16 or f16.
    struct FusedMoeTensor hidden_states;
    // [T, k] u32, or none for the layer's own router. An id of no expert (UINT32_MAX, say) adds nothing.
    struct FusedMoeTensor topk_ids;
    // [T, k] f32, with topk_ids.
    struct FusedMoeTensor topk_weights;
    // [T, H] f32, bf16 or f16; overlaps none of the others and no weight.
    struct FusedMoeTensor output;
    // The CUstream to enqueue on. NULL on devices without streams: there the call returns when it is done.
    void *stream;
} FusedMoeForward;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The text of the last error of this thread, or NULL if there was none. It is valid until the next failing call of
// this thread, or its end.
const char *fused_moe_last_error(void);

// Makes a layer. `config_json` is a MoeConfig as JSON; docs/integrating.md lists its fields.
//
// On a device that computes in host memory the weights are borrowed: they must stay, unchanged, until the layer is
// freed. On others they are copied.
//
// # Safety
// `device` came from fused_moe_device_new and was not freed; `config_json` is a NUL-terminated string; `weights` and
// what its tensors point to are readable; `layer` is writable.
enum FusedMoeStatus fused_moe_layer_new(const struct FusedMoeDevice *device,
                                        const char *config_json,
                                        const struct FusedMoeWeights *weights,
                                        struct FusedMoeLayer **layer);

// Loads a layer of a Hugging Face checkpoint directory. `layer_id` is its index, "3", or "encoder.1" and "decoder.1" in
// an encoder-decoder; NULL takes the first that has experts. The files may be memory-mapped: they must not change until
// the layer is freed.
//
// # Safety
// `device` came from fused_moe_device_new and was not freed; `directory` is a NUL-terminated string, `layer_id` too or
// NULL; `layer` is writable.
enum FusedMoeStatus fused_moe_layer_load(const struct FusedMoeDevice *device,
                                         const char *directory,
                                         const char *layer_id,
                                         struct FusedMoeLayer **layer);

// Frees a layer.
//
// # Safety
// `layer` came from this library, was not freed, and no call uses it.
void fused_moe_layer_free(struct FusedMoeLayer *layer);

// output = layer(hidden_states). The residual is the caller's.
//
// # Safety
// `layer` and `workspace` came from this library and were not freed; `args` is readable; the tensors in it are
// readable, `output` is writable and used by nobody else, until the call is done.
enum FusedMoeStatus fused_moe_forward(const struct FusedMoeLayer *layer,
                                      const struct FusedMoeForward *args,
                                      const struct FusedMoeWorkspace *workspace);

// FUSED_MOE_ABI_VERSION of the library; compare it with the header's before anything else.
uint32_t fused_moe_abi_version(void);

// Opens a device by the name of its backend: "auto" (the best there is), "cpu", "wgpu", "cuda" or "reference" (the slow
// oracle). FUSED_MOE_STATUS_UNAVAILABLE says what is missing.
//
// # Safety
// `backend` is a NUL-terminated string, `device` is writable.
enum FusedMoeStatus fused_moe_device_new(const char *backend, struct FusedMoeDevice **device);

// Frees a device.
//
// # Safety
// `device` came from fused_moe_device_new and was not freed.
void fused_moe_device_free(struct FusedMoeDevice *device);

// Waits for all work given to the device.
//
// # Safety
// `device` came from fused_moe_device_new and was not freed.
enum FusedMoeStatus fused_moe_device_synchronize(const struct FusedMoeDevice *device);

// Allocates the memory that calls of `layer` with up to `max_tokens` tokens need.
//
// # Safety
// `layer` came from this library and was not freed; `workspace` is writable.
enum FusedMoeStatus fused_moe_workspace_new(const struct FusedMoeLayer *layer,
                                            size_t max_tokens,
                                            struct FusedMoeWorkspace **workspace);

// The bytes that a workspace holds; 0 for NULL and for one that is in use.
//
// # Safety
// `workspace` is NULL, or came from fused_moe_workspace_new and was not freed.
size_t fused_moe_workspace_bytes(const struct FusedMoeWorkspace *workspace);

// Frees a workspace.
//
// # Safety
// `workspace` came from fused_moe_workspace_new, was not freed, and no call uses it.
void fused_moe_workspace_free(struct FusedMoeWorkspace *workspace);

// The text of the last error of this thread, or NULL if there was none. It is valid until the next failing call of
// this thread, or its end.
const char *fused_moe_last_error(void);

// Makes a layer. `config_json` is a MoeConfig as JSON; docs/integrating.md lists its fields.
//
// On a device that computes in host memory the weights are borrowed: they must stay, unchanged, until the layer is
// freed. On others they are copied.
//
// # Safety
// `device` came from fused_moe_device_new and was not freed; `config_json` is a NUL-terminated string; `weights` and
// what its tensors point to are readable; `layer` is writable.
enum FusedMoeStatus fused_moe_layer_new(const struct FusedMoeDevice *device,
                                        const char *config_json,
                                        const struct FusedMoeWeights *weights,
                                        struct FusedMoeLayer **layer);

// Loads a layer of a Hugging Face checkpoint directory. `layer_id` is its index, "3", or "encoder.1" and "decoder.1" in
// an encoder-decoder; NULL takes the first that has experts. The files may be memory-mapped: they must not change until
// the layer is freed.
//
// # Safety
// `device` came from fused_moe_device_new and was not freed; `directory` is a NUL-terminated string, `layer_id` too or
// NULL; `layer` is writable.
enum FusedMoeStatus fused_moe_layer_load(const struct FusedMoeDevice *device,
                                         const char *directory,
                                         const char *layer_id,
                                         struct FusedMoeLayer **layer);

// Frees a layer.
//
// # Safety
// `layer` came from this library, was not freed, and no call uses it.
void fused_moe_layer_free(struct FusedMoeLayer *layer);

// output = layer(hidden_states). The residual is the caller's.
//
// # Safety
// `layer` and `workspace` came from this library and were not freed; `args` is readable; the tensors in it are
// readable, `output` is writable and used by nobody else, until the call is done.
enum FusedMoeStatus fused_moe_forward(const struct FusedMoeLayer *layer,
                                      const struct FusedMoeForward *args,
                                      const struct FusedMoeWorkspace *workspace);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* FUSED_MOE_H */
