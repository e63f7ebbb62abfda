/* Reads 8-bit 4:2:0 video as YUV4MPEG2 from standard input and prints the block map of every frame: a line for each row of blocks
 * of 16x16 px, values from 0 to 1, and an empty line after each frame. ONNX Runtime's C API alone.
 *
 *     distill variant --output block-map      # saliency_student_step_yuv420_bt709_blocks.onnx; SD or untagged video: --matrix bt601
 *     gcc -O2 -I/usr/include/onnxruntime block_map.c -lonnxruntime -o block_map
 *     ffmpeg -i in.mp4 -pix_fmt yuv420p -f yuv4mpegpipe - | ./block_map FILE.onnx
 */

#include <ctype.h>
#include <onnxruntime_c_api.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const OrtApi *ort;

static void fail(const char *message) {
    fprintf(stderr, "block_map: %s\n", message);
    exit(2);
}

static void check(OrtStatus *status) {
    if (status) fail(ort->GetErrorMessage(status));
}

/* The number behind a letter in the header, which reads "YUV4MPEG2 W640 H360 F25:1 C420jpeg". */
static size_t parameter(const char *header, const char *letter) {
    const char *found = strstr(header, letter);
    long number = found ? strtol(found + strlen(letter), NULL, 10) : 0;
    if (number < 16 || number > 8192) fail("standard input is no YUV4MPEG2 of 16 to 8192 px a side");
    return (size_t)number;
}

/* Zeros in the shape of the second output: the state before the first frame, and after a cut. In a file for any frame size the state
 * is optional, and ONNX Runtime does not count it among the inputs. */
static OrtValue *zeros(OrtSession *session) {
    OrtTypeInfo *type;
    const OrtTensorTypeAndShapeInfo *tensor;
    OrtAllocator *allocator;
    OrtValue *value;
    int64_t shape[4];
    void *data;
    check(ort->SessionGetOutputTypeInfo(session, 1, &type));
    check(ort->CastTypeInfoToTensorInfo(type, &tensor));
    check(ort->GetDimensions(tensor, shape, 4));
    ort->ReleaseTypeInfo(type);
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->CreateTensorAsOrtValue(allocator, shape, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
    check(ort->GetTensorMutableData(value, &data));
    memset(data, 0, sizeof(float) * (size_t)(shape[0] * shape[1] * shape[2] * shape[3]));
    return value;
}

static void print_map(OrtValue *map) {
    OrtTensorTypeAndShapeInfo *info;
    int64_t shape[4];
    float *values;
    check(ort->GetTensorTypeAndShape(map, &info));
    check(ort->GetDimensions(info, shape, 4));
    ort->ReleaseTensorTypeAndShapeInfo(info);
    check(ort->GetTensorMutableData(map, (void **)&values));
    for (int64_t row = 0; row < shape[2]; row++)
        for (int64_t column = 0; column < shape[3]; column++)
            printf("%.7f%c", values[row * shape[3] + column], column + 1 < shape[3] ? ' ' : '\n');
    putchar('\n');
}

int main(int count, char **arguments) {
    char header[256], line[256];
    if (count != 2) fail("usage: block_map MODEL.onnx < VIDEO.y4m");
    if (!fgets(header, sizeof header, stdin) || strncmp(header, "YUV4MPEG2 ", 10)) fail("standard input is no YUV4MPEG2");
    size_t width = parameter(header, " W"), height = parameter(header, " H");
    const char *chroma = strstr(header, " C");
    if (chroma && strncmp(chroma, " C420", 5)) fail("the video is not 4:2:0");
    if (chroma && chroma[5] == 'p' && isdigit((unsigned char)chroma[6])) fail("the video has more than 8 bits"); /* C420p10 */

    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort) fail("the library is older than the header");
    OrtEnv *environment;
    OrtSessionOptions *options;
    OrtSession *session;
    OrtMemoryInfo *memory;
    size_t outputs;
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "block_map", &environment));
    check(ort->CreateSessionOptions(&options));
    check(ort->SetIntraOpNumThreads(options, 1));
    check(ort->CreateSession(environment, arguments[1], options, &session));
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    check(ort->SessionGetOutputCount(session, &outputs));

    /* y, u and v, in one buffer, which every frame is read into; then the state, which files made from an image file lack. */
    const char *in[] = {"y", "u", "v", "state_in"}, *out[] = {"block_map", "state_out"};
    OrtValue *values[4], *results[2];
    size_t half[2] = {(height + 1) / 2, (width + 1) / 2}, luma = width * height, size = luma + 2 * half[0] * half[1];
    uint8_t *planes = malloc(size), *plane = planes;
    if (!planes) fail("out of memory");
    for (int n = 0; n < 3; n++) {
        int64_t shape[4] = {1, 1, (int64_t)(n ? half[0] : height), (int64_t)(n ? half[1] : width)};
        size_t bytes = (size_t)(shape[2] * shape[3]);
        check(ort->CreateTensorWithDataAsOrtValue(memory, plane, bytes, shape, 4, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &values[n]));
        plane += bytes;
    }
    if (outputs == 2) values[3] = zeros(session);

    while (fgets(line, sizeof line, stdin)) {
        if (strncmp(line, "FRAME", 5) || fread(planes, 1, size, stdin) != size) fail("a frame is cut off");
        results[0] = results[1] = NULL;
        check(ort->Run(session, NULL, in, (const OrtValue *const *)values, outputs + 2, out, outputs, results));
        print_map(results[0]); /* here the map goes to the encoder */
        ort->ReleaseValue(results[0]);
        if (outputs == 2) { /* the state of this frame is the next frame's input; at a cut, zeros(session) instead */
            ort->ReleaseValue(values[3]);
            values[3] = results[1];
        }
    }
    for (size_t n = 0; n < outputs + 2; n++) ort->ReleaseValue(values[n]);
    free(planes);
    ort->ReleaseMemoryInfo(memory);
    ort->ReleaseSession(session);
    ort->ReleaseSessionOptions(options);
    ort->ReleaseEnv(environment);
    return 0;
}
