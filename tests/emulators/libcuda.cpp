// A libcuda.so.1 without a GPU: it writes down every call, and fails those that it is told to.
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

namespace {

char text[1 << 16];
char failing[64];
int failure;
size_t current;  // context

int answer(const char* name, const char* format, ...) {
  size_t length = strlen(text);
  length += snprintf(text + length, sizeof text - length, "%s", name);
  va_list values;
  va_start(values, format);
  length += vsnprintf(text + length, sizeof text - length, format, values);
  va_end(values);
  snprintf(text + length, sizeof text - length, "\n");
  return strcmp(name, failing) ? 0 : failure;
}

}  // namespace

extern "C" {

// For the test: what was called since the last time, what to fail, which context is current.
void fake_calls(char* to, size_t size) {
  snprintf(to, size, "%s", text);
  text[0] = 0;
}
void fake_fail(const char* name, int status) {
  snprintf(failing, sizeof failing, "%s", name);
  failure = status;
}
void fake_current(size_t context) { current = context; }

int cuInit(unsigned flags) { return answer("cuInit", " %u", flags); }
int cuGetErrorName(int status, const char** name) {
  *name = status == 100   ? "CUDA_ERROR_NO_DEVICE"
          : status == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
          : status == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                          : nullptr;
  return *name ? 0 : 1;
}
int cuGetErrorString(int status, const char** text_of) {
  *text_of = status == 100   ? "no CUDA-capable device is detected"
             : status == 209 ? "no kernel image is available for execution on the device"
             : status == 700 ? "an illegal memory access was encountered"
                             : nullptr;
  return *text_of ? 0 : 1;
}
int cuDeviceGetCount(int* count) {
  *count = 2;
  return answer("cuDeviceGetCount", "");
}
int cuDeviceGet(int* device, int number) {
  *device = 10 + number;
  return answer("cuDeviceGet", " %d", number);
}
int cuDeviceGetName(char* name, int length, int device) {
  snprintf(name, length, "Fake %d", device);
  return answer("cuDeviceGetName", " %d %d", length, device);
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = 1000 * device + attribute;
  return answer("cuDeviceGetAttribute", " %d %d", attribute, device);
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (void*)(size_t)(0xC000 + device);
  return answer("cuDevicePrimaryCtxRetain", " %d", device);
}
int cuCtxGetCurrent(void** context) {
  *context = (void*)current;
  return 0;
}
int cuCtxSetCurrent(void* context) {
  current = (size_t)context;
  return answer("cuCtxSetCurrent", " %zx", current);
}
int cuModuleLoadDataEx(void** module, const char* image, unsigned count, int* options,
                       void** values) {
  *module = (void*)0x4D0000000001;
  for (unsigned i = 0; i < count; i++) {
    size_t size = 0;
    for (unsigned j = 0; j < count; j++)
      if (options[j] == 6) size = (size_t)values[j];
    if (options[i] == 5) snprintf((char*)values[i], size, "ptxas error\n  line 7\n");
  }
  return answer("cuModuleLoadDataEx", " %.4s %zu", image, strlen(image));
}
int cuModuleUnload(void* module) { return answer("cuModuleUnload", " %p", module); }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = (void*)0x4600000000F1;
  return answer("cuModuleGetFunction", " %p %s", module, name);
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = 1024;
  return answer("cuFuncGetAttribute", " %d %p", attribute, function);
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  return answer("cuFuncSetAttribute", " %p %d %d", function, attribute, value);
}
// The parameters are those of the test's kernel: (P, i, f, q).
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** parameters, void** extra) {
  return answer("cuLaunchKernel", " %p %u %u %u %u %u %u %u %p %p %d %g %lld %d %zx", function, gx,
                gy, gz, bx, by, bz, shared, stream, *(void**)parameters[0], *(int*)parameters[1],
                *(float*)parameters[2], *(long long*)parameters[3], extra == nullptr, current);
}
int cuMemAlloc_v2(unsigned long long* address, size_t size) {
  *address = 0x7F0000000100;
  return answer("cuMemAlloc_v2", " %zu", size);
}
int cuMemFree_v2(unsigned long long address) { return answer("cuMemFree_v2", " %llx", address); }
int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t size, void* stream) {
  return answer("cuMemcpyHtoDAsync_v2", " %llx %.3s %zu %p", to, (const char*)from, size, stream);
}
int cuMemcpyDtoHAsync_v2(void* to, unsigned long long from, size_t size, void* stream) {
  memset(to, 'z', size);
  return answer("cuMemcpyDtoHAsync_v2", " %llx %zu %p", from, size, stream);
}
int cuStreamSynchronize(void* stream) { return answer("cuStreamSynchronize", " %p", stream); }
int cuStreamIsCapturing(void* stream, int* status) {
  *status = stream == (void*)0x51;
  return answer("cuStreamIsCapturing", " %p", stream);
}
int cuThreadExchangeStreamCaptureMode(int* mode) {
  static int now = 0;
  int before = now;
  now = *mode;
  *mode = before;
  return answer("cuThreadExchangeStreamCaptureMode", " %d", now);
}

int cuStreamCreate(void** stream, unsigned flags) {
  *stream = (void*)0x57;
  return answer("cuStreamCreate", " %u", flags);
}
int cuStreamBeginCapture_v2(void* stream, int mode) {
  return answer("cuStreamBeginCapture_v2", " %p %d", stream, mode);
}
int cuStreamEndCapture(void* stream, void** graph) {
  *graph = (void*)0x6A;
  return answer("cuStreamEndCapture", " %p", stream);
}
int cuGraphInstantiateWithFlags(void** ready, void* graph, unsigned long long flags) {
  *ready = (void*)0x6B;
  return answer("cuGraphInstantiateWithFlags", " %p %llu", graph, flags);
}
int cuGraphDestroy(void* graph) { return answer("cuGraphDestroy", " %p", graph); }
int cuGraphLaunch(void* ready, void* stream) {
  return answer("cuGraphLaunch", " %p %p", ready, stream);
}
int cuGraphExecDestroy(void* ready) { return answer("cuGraphExecDestroy", " %p", ready); }
int cuEventCreate(void** event, unsigned flags) {
  static size_t count = 0;
  *event = (void*)(0xE0 + count++ % 2);
  return answer("cuEventCreate", " %u", flags);
}
int cuEventRecord(void* event, void* stream) {
  return answer("cuEventRecord", " %p %p", event, stream);
}
int cuEventSynchronize(void* event) { return answer("cuEventSynchronize", " %p", event); }
int cuEventElapsedTime(float* milliseconds, void* first, void* last) {
  *milliseconds = 2.5f;
  return answer("cuEventElapsedTime", " %p %p", first, last);
}
int cuEventDestroy_v2(void* event) { return answer("cuEventDestroy_v2", " %p", event); }

}  // extern "C"
