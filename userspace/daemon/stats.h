// SPDX-License-Identifier: GPL-2.0-only
// Histograms → figures.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <vqlane/stats.h>

namespace vql {

// Add @more, which somebody may be writing to.
void add_stats(vql_disk_stats& sum, const vql_disk_stats& more);

// One operation's figures, and all of a disk's, as the control socket tells them; with the counts
// of the latency buckets (vqlane/stats.h) where they are asked for.
nlohmann::json op_figures(const vql_op_stats& s, bool histogram = false);
nlohmann::json disk_figures(const vql_disk_stats& s, bool histograms = false);

} // namespace vql
