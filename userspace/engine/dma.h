// SPDX-License-Identifier: GPL-2.0-only
// Where a guest's memory is for one controller: addresses of this process → DMA addresses.
#pragma once

#include <cstdint>
#include <vector>
#include <vqlane/mem.h>

namespace vql {

constexpr uint64_t dma_unmapped = ~uint64_t{0};

// Memory that is contiguous here, and the DMA address of each of its pages of 4096 bytes.
struct dma_region {
    uintptr_t base; // of a page
    uint64_t bytes;
    const uint64_t* table; // dma_unmapped: not mapped for this controller
};

// Used by one poller's thread only, which is what makes the hint safe.
class dma_view {
  public:
    dma_view() = default; // nothing is mapped
    explicit dma_view(std::vector<dma_region> regions);

    // The DMA address of @p, good until the end of its page; or dma_unmapped.
    uint64_t at(const void* p) const {
        const auto at = reinterpret_cast<uintptr_t>(p);
        if (VQL_UNLIKELY(at - hint_.base >= hint_.bytes) && !find(at))
            return dma_unmapped;
        const uint64_t offset = at - hint_.base;
        const uint64_t page = hint_.table[offset >> 12];
        return VQL_LIKELY(page != dma_unmapped) ? page + (offset & 4095) : dma_unmapped;
    }

    // What it is made of.
    const std::vector<dma_region>& regions() const { return regions_; }

  private:
    bool find(uintptr_t at) const;

    std::vector<dma_region> regions_; // sorted by base
    mutable dma_region hint_{};       // the region that was asked for last
};

// The view that belongs to @table, which the module has made for memory of these regions: it has
// one entry for each page, region after region.
dma_view make_dma_view(const std::vector<vql_region>& regions, const uint64_t* table);

} // namespace vql
