// SPDX-License-Identifier: GPL-2.0-only
// The fuzz targets. Each takes any bytes at all; what must hold is checked inside, and aborts.
// libFuzzer drives them one per program (make fuzz, which defines VQL_FUZZER), and the unit tests
// replay the corpora in corpus/.
#pragma once

#include <cstddef>
#include <cstdint>

int fuzz_ring(const uint8_t* data, size_t size);
int fuzz_vhost_user(const uint8_t* data, size_t size);
