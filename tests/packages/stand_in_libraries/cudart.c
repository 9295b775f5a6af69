/* CUDA's runtime library without a GPU: memory is the host's, and kernels do nothing.

   It lets ONNX Runtime's real CUDA provider load graphs, place their nodes, and capture. Every call
   that would cost time on a GPU is a line of the file that STAND_IN_LOG names. */

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef cudaGetDeviceProperties
#define OK return cudaSuccess

static FILE *out;
static int capturing;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void say(const char *form, ...) {
  pthread_mutex_lock(&lock);
  if (!out && getenv("STAND_IN_LOG")) out = fopen(getenv("STAND_IN_LOG"), "a");
  if (out) {
    va_list rest;
    va_start(rest, form);
    vfprintf(out, form, rest);
    va_end(rest);
    fputc('\n', out);
    fflush(out);
  }
  pthread_mutex_unlock(&lock);
}

void stand_in_say(const char *text) { say("%s", text); }

/* Kernels */

static __thread struct { dim3 grid, block; size_t shared; void *stream; } launch;

void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 64); }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int n,
                            void *a, void *b, void *c, void *d, int *e) {}
void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int a, size_t b,
                       int c, int d) {}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  launch.grid = grid, launch.block = block, launch.shared = shared, launch.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = launch.grid, *block = launch.block, *shared = launch.shared;
  *(void **)stream = launch.stream;
  OK;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) {
  *kernel = (cudaKernel_t)host;
  OK;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments,
                               size_t shared, cudaStream_t stream) { say("kernel"); OK; }
cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments,
                             size_t shared, cudaStream_t stream) { say("kernel"); OK; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel,
                                void **arguments) { say("kernel"); OK; }
cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block,
                                        void **arguments, size_t shared, cudaStream_t stream) {
  say("kernel");
  OK;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  function(data);
  OK;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024, found->numRegs = 32;
  found->binaryVersion = found->ptxVersion = 90;
  OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *number, const void *kernel,
                                                                   int block, size_t shared,
                                                                   unsigned flags) {
  *number = 2;
  OK;
}

/* Memory */

static cudaError_t take(void **address, size_t size, const char *what) {
  *address = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  say("%s", what);
  return *address ? cudaSuccess : cudaErrorMemoryAllocation;
}
/* The bytes of the device are counted where STAND_IN_BYTES bounds them; nothing is given back. */
cudaError_t cudaMalloc(void **address, size_t size) {
  static size_t taken;
  const char *most = getenv("STAND_IN_BYTES");
  if (most && taken + size > strtoull(most, NULL, 10)) return cudaErrorMemoryAllocation;
  taken += size;
  return take(address, size, "allocate");
}
cudaError_t cudaMallocHost(void **address, size_t size) { return take(address, size, "pin"); }
cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) {
  return take(address, size, "pin");
}
cudaError_t cudaFree(void *address) { free(address); OK; }
cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) { free(address); OK; }
cudaError_t cudaFreeHost(void *address) { free(address); OK; }
cudaError_t cudaMemGetInfo(size_t *found, size_t *total) {
  *found = 70ull << 30, *total = 80ull << 30;
  OK;
}
static const char *ways[] = {"host", "up", "down", "within", "copy"};
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  say("waiting copy %s", ways[kind]);
  memcpy(to, from, size);
  OK;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
  say("copy %s", ways[kind]);
  memcpy(to, from, size);
  OK;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t pitch, const void *from, size_t other, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
  say("copy %s", ways[kind]);
  OK;
}
cudaError_t cudaMemset(void *to, int value, size_t size) { memset(to, value, size); OK; }
cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
  memset(to, value, size);
  OK;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *address) {
  memset(found, 0, sizeof *found);
  found->type = cudaMemoryTypeDevice, found->devicePointer = (void *)address;
  OK;
}

/* Streams, events and graphs */

static cudaError_t make(void **handle) { *handle = malloc(16); OK; }
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return make((void **)stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  return make((void **)stream);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { say("wait"); OK; }
cudaError_t cudaDeviceSynchronize(void) { say("wait"); OK; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  OK;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  capturing = 1;
  say("capture");
  OK;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  capturing = 0;
  return make((void **)graph);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *run, cudaGraph_t graph, unsigned long long f) {
  return make((void **)run);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t run, cudaStream_t stream) { say("graph"); OK; }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return make((void **)event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  return make((void **)event);
}

/* The device: an H100 by its numbers */

cudaError_t cudaGetDevice(int *device) { *device = 0; OK; }
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; OK; }
cudaError_t cudaDriverGetVersion(int *version) { *version = 13000; OK; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13000; OK; }
const char *cudaGetErrorName(cudaError_t error) { return "cudaErrorStandIn"; }
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "the stand-in";
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    default: *value = 1;
  }
  OK;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "stand-in");
  found->totalGlobalMem = 80ull << 30, found->major = 9, found->multiProcessorCount = 132;
  found->maxThreadsPerBlock = 1024, found->warpSize = 32, found->sharedMemPerBlock = 49152;
  found->sharedMemPerBlockOptin = 232448, found->sharedMemPerMultiprocessor = 233472;
  found->regsPerBlock = found->regsPerMultiprocessor = 65536;
  found->maxThreadsPerMultiProcessor = 2048, found->maxBlocksPerMultiProcessor = 32;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024, found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->l2CacheSize = 50 << 20;
  OK;
}
