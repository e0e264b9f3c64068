// SPDX-License-Identifier: GPL-2.0-only
// An NVMe engine with a model controller at its other end, and a guest's memory for both.
#pragma once

#include "engine/nvme.h"
#include "nvme_model.h"
#include "ring_memory.h"

#include <catch2/catch_test_macros.hpp>
#include <cstring>
#include <map>
#include <numeric>

namespace vql::test {

class nvme_rig {
  public:
    static constexpr uint64_t guest_bytes = 6 << 20;

    explicit nvme_rig(const nvme_model::options& o = {})
        : options(o), model(o), memory_(guest_bytes, 4096),
          table_(model.map(memory_.data(), guest_bytes, o.shuffle + 1)), view(whole()) {
        where.kind = target_kind::nvme;
        where.nsid = o.nsid;
        where.block_bytes = o.block_bytes;
        where.bytes = o.blocks * o.block_bytes;
        where.boundary_blocks = o.boundary_blocks;
        REQUIRE(engine.open(model.queue()));
    }
    ~nvme_rig() {
        for (const std::string& v : model.violations())
            UNSCOPED_INFO(v);
        CHECK(model.violations().empty());
        CHECK(engine.unexpected() == unexpected_wanted);
    }

    uint8_t* guest() { return memory_.data(); }
    std::vector<uint64_t>& table() { return table_; }

    // Piece number @id: its owner is no request, but a number.
    vql::piece make(uint64_t id, vql_op op, uint64_t lba, uint64_t blocks,
                    const std::vector<vql_seg>& segs = {}) {
        vql::piece p;
        p.owner = reinterpret_cast<request*>(id + 1);
        p.where = &where;
        p.offset = lba * options.block_bytes;
        p.bytes = blocks * options.block_bytes;
        p.seg = segs.data();
        p.nsegs = uint32_t(segs.size());
        p.op = uint8_t(op);
        p.bounced = &bounced;
        p.dma = &view;
        return p;
    }

    // What is done, by number; @check is called before the engine is told.
    std::map<uint64_t, vql_status> collect() {
        std::map<uint64_t, vql_status> all;
        for (const auto& f : engine.done()) {
            const uint64_t id = reinterpret_cast<uintptr_t>(f.owner) - 1;
            REQUIRE(all.emplace(id, f.status).second);
        }
        engine.clear_done();
        return all;
    }

    // Rounds of the poller and steps of the controller, until nothing is in flight.
    std::map<uint64_t, vql_status> run() {
        std::map<uint64_t, vql_status> all = collect();
        for (int idle = 0; engine.in_flight(); idle++) {
            REQUIRE(idle < 10000);
            engine.retry(now += ms);
            engine.flush();
            model.drain();
            engine.reap();
            all.merge(collect());
        }
        return all;
    }
    vql_status run_one(const vql::piece& p) {
        REQUIRE(engine.submit(p));
        const auto all = run();
        REQUIRE(all.size() == 1);
        return all.begin()->second;
    }

    const nvme_model::options options;
    nvme_model model;
    nvme_engine engine;
    target where;
    static constexpr uint64_t ms = 1'000'000;
    uint64_t now = 1; // the poller's clock
    uint64_t unexpected_wanted = 0;
    __u64 bounced = 0;

  private:
    // As the daemon makes it: regions of a guest, here neighbours, and not.
    dma_view whole() {
        const uint64_t part = guest_bytes / 3;
        std::vector<vql_region> regions;
        for (uint64_t i = 0; i < 3; i++) {
            vql_region r{};
            r.guest = i * part;
            r.bytes = part;
            r.host = memory_.data() + i * part;
            regions.push_back(r);
        }
        return make_dma_view(regions, table_.data());
    }

    guarded_bytes memory_;
    std::vector<uint64_t> table_;

  public:
    dma_view view;
};

} // namespace vql::test
