// SPDX-License-Identifier: GPL-2.0-only
// vqlane bench: what a disk does under load. The load is the tests' (tests/bench/load.h), a
// virtio-blk driver of its own, so that any server of vhost-user-blk or vDPA can be measured, not
// only ours.
#pragma once

#include "base/result.h"
#include "bench/load.h"

#include <CLI/App.hpp>
#include <string>

namespace vql {

struct bench_options {
    std::string device; // a vhost-user socket, or /dev/vhost-vdpa-N
    bench::load_options load;
    unsigned write_percent = 0;
    bool destroy_data = false;
    int cpu = -1; // the driver's; < 0: any
    bool as_json = false;
};

void define_bench_options(CLI::App& command, bench_options& o);

// What is to be printed. A request that ends with an error status is a failure.
result<std::string> bench_disk(const bench_options& o);

} // namespace vql
