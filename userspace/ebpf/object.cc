// SPDX-License-Identifier: GPL-2.0-only
#include "ebpf/object.h"

#include <cstdio>

namespace vql {

namespace {

thread_local std::string* words = nullptr;

// A log that the kernel was given room for: the end of a longer one says why it is refused.
constexpr size_t max_words = 64 << 10;

int hear(libbpf_print_level level, const char* format, va_list arguments) {
    if (!words || level > LIBBPF_WARN)
        return 0;
    va_list again;
    va_copy(again, arguments);
    const int bytes = std::vsnprintf(nullptr, 0, format, arguments);
    std::string line(size_t(bytes > 0 ? bytes : 0), '\0');
    std::vsnprintf(line.data(), line.size() + 1, format, again);
    va_end(again);
    *words += line;
    if (words->size() > max_words)
        words->replace(0, words->size() - max_words, "... ");
    return bytes;
}

[[maybe_unused]] const libbpf_print_fn_t heard = libbpf_set_print(hear);

} // namespace

libbpf_words::libbpf_words() : outer_(words) {
    words = &text_;
}

libbpf_words::~libbpf_words() {
    words = outer_;
}

} // namespace vql
