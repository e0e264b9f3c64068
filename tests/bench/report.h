// SPDX-License-Identifier: GPL-2.0-only
// A load's options as a command line has them, and its result as JSON: of `bench` and `vqlane
// bench`.
#pragma once

#include "bench/load.h"

#include <CLI/App.hpp>
#include <nlohmann/json_fwd.hpp>

namespace vql::bench {

// All but what is to be written. @cpu: the driver's, as it was before if none is given.
void define_load_options(CLI::App& command, load_options& o, int& cpu);

nlohmann::json report(const load_result& r, const load_options& o);

} // namespace vql::bench
