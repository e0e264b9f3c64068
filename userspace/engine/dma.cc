// SPDX-License-Identifier: GPL-2.0-only
#include "engine/dma.h"

#include <algorithm>

namespace vql {

dma_view::dma_view(std::vector<dma_region> regions) : regions_(std::move(regions)) {
    std::sort(regions_.begin(), regions_.end(),
              [](const dma_region& a, const dma_region& b) { return a.base < b.base; });
    // Neighbours whose tables are neighbours as well are one: with the module's own mapping of a
    // guest's memory that is all of it.
    size_t n = 0;
    for (const dma_region& r : regions_) {
        dma_region* const before = n ? &regions_[n - 1] : nullptr;
        if (before && before->base + before->bytes == r.base &&
            before->table + (before->bytes >> 12) == r.table)
            before->bytes += r.bytes;
        else
            regions_[n++] = r;
    }
    regions_.resize(n);
    if (n)
        hint_ = regions_.front();
}

bool dma_view::find(uintptr_t at) const {
    const auto after =
        std::upper_bound(regions_.begin(), regions_.end(), at,
                         [](uintptr_t a, const dma_region& r) { return a < r.base; });
    if (after == regions_.begin() || at - after[-1].base >= after[-1].bytes)
        return false;
    hint_ = after[-1];
    return true;
}

dma_view make_dma_view(const std::vector<vql_region>& regions, const uint64_t* table) {
    std::vector<dma_region> parts;
    for (const vql_region& r : regions) {
        parts.push_back({reinterpret_cast<uintptr_t>(r.host), r.bytes, table});
        table += (r.bytes + 4095) >> 12;
    }
    return dma_view(std::move(parts));
}

} // namespace vql
