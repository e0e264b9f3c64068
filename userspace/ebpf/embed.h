// SPDX-License-Identifier: GPL-2.0-only
// Compiled BPF objects inside the binary: what is loaded always fits.
#pragma once

#include <cstddef>

// NAME_start and NAME_bytes() for the file at @path, a string literal.
#define VQL_EMBED(name, path)                                                                      \
    extern "C" {                                                                                   \
    extern const unsigned char name##_start[];                                                     \
    extern const unsigned char name##_end[];                                                       \
    }                                                                                              \
    asm(".pushsection .rodata\n"                                                                   \
        ".balign 8\n"                                                                              \
        ".global " #name "_start\n" #name "_start: .incbin \"" path "\"\n"                         \
        ".global " #name "_end\n" #name "_end:\n"                                                  \
        ".popsection\n");                                                                          \
    static size_t name##_bytes() {                                                                 \
        return size_t(name##_end - name##_start);                                                  \
    }
