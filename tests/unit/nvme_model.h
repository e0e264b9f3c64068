// SPDX-License-Identifier: GPL-2.0-only
// An NVMe controller with one queue pair and one namespace, in memory: the other end of a
// vql_nvme_queue. It executes what it is given on a disk that anyone may look at, in the order and
// with the errors that are asked for, and writes down every rule of the specification that a
// command breaks. It has its own reading of the wire formats, on purpose.
//
// All functions on one thread, the device's; but for queue(), map() and the construction, which
// come before, and violations(), which comes after it has ended.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>
#include <vqlane/nvme.h>

namespace vql::test {

class nvme_model {
  public:
    struct options {
        uint64_t blocks = 1 << 15;
        uint32_t block_bytes = 512;
        uint32_t nsid = 1;
        uint32_t boundary_blocks = 0;
        uint32_t max_transfer = 128 << 10;
        uint32_t max_zeroes = 0;  // WZSL in bytes; 0: it does not say
        uint32_t max_discard = 0; // DMRSL in blocks
        uint32_t depth = 64;
        uint32_t bounce_pages = 8; // of the pool, besides lists and zeroes
        bool sgl = false;
        bool shadow = false;
        bool volatile_cache = true;
        bool write_zeroes = true;
        bool discard = true;
        std::array<uint16_t, 3> crdt{}; // command retry delays, in 100 ms
        uint64_t shuffle = 0; // seed: complete in random order; 0: in the order of submission
    };
    // What a command did, as far as tests want to know.
    struct counters {
        uint64_t commands[256] = {}; // by opcode
        uint64_t sgl = 0;            // … that used one
        uint64_t lists = 0;          // … that had a PRP list or a segment of descriptors
        uint64_t pool_data = 0;      // bytes moved from or to the pool
        uint64_t rings = 0;          // writes of the submission doorbell that were seen
        uint64_t deallocated = 0;    // blocks, by DSM or DEAC
    };

    explicit nvme_model(const options& o);
    ~nvme_model();
    nvme_model(const nvme_model&) = delete;
    nvme_model& operator=(const nvme_model&) = delete;

    // A queue pair that was just made. The one before must have been lost.
    vql_nvme_queue queue();

    // Make [base, base + bytes) known; returns the DMA address of each page. Neighbouring pages
    // stay neighbours in random runs.
    std::vector<uint64_t> map(uint8_t* base, uint64_t bytes, uint64_t seed);

    // Returns the status code that a command is to end with, with a command retry delay in bits
    // 12:11; 0: execute it. Called once a command. It is not to be retried, but for this bit.
    static constexpr uint32_t for_now = 1u << 15;
    std::function<uint32_t(const vql_nvme_sqe&)> inject;

    // Read new commands. Returns how many are under way.
    size_t fetch();
    // Execute and complete at most @most of those under way. Returns how many.
    size_t complete(size_t most);
    // Both, until nothing is under way.
    void drain();
    // Both, until @stop.
    void run(const std::atomic<bool>& stop);
    // Write a completion, whatever it is for.
    void post(uint16_t cid, uint32_t code);

    // The queue pair is deleted; commands under way were executed (@half of them, at random) or
    // not, and its memory reads as zeroes from now on.
    void lose(bool half);
    // Only the state word changes.
    void set_state(uint32_t state) { vql_store_release(state_, state); }

    const std::vector<vql_nvme_sqe>& under_way() const { return under_way_; }
    // Does any of them read or write one of these blocks?
    bool touches(uint64_t lba, uint64_t blocks) const;

    uint8_t* block(uint64_t lba) { return disk_.data() + lba * o_.block_bytes; }
    std::vector<uint8_t>& disk() { return disk_; }
    // Blocks that a power cut would lose.
    uint64_t unstable(uint64_t lba, uint64_t blocks) const;
    counters& count() { return count_; }
    const std::vector<std::string>& violations() const { return violations_; }

    // The memory of the parts, for tests that take it away.
    const vql_nvme_sqe* sq() const { return sq_; }
    vql_nvme_cqe* cq() { return cq_; }
    size_t cq_bytes() const { return page_round(o_.depth * sizeof(vql_nvme_cqe)); }
    uint8_t* pool() { return pool_; }
    size_t pool_bytes() const { return size_t(pool_pages_) * 4096; }
    uint32_t* sq_doorbell() { return doorbells_; }
    uint32_t* sq_event() { return events_; }

  private:
    struct run_of_bytes {
        uint8_t* at;
        uint64_t bytes;
    };
    static constexpr uint32_t nothing = ~uint32_t{0}; // in a doorbell that was not written
    static size_t page_round(size_t bytes) { return (bytes + 4095) & ~size_t{4095}; }

    void violation(const vql_nvme_sqe& e, const std::string& what);
    uint8_t* translate(uint64_t dma);
    bool add_run(const vql_nvme_sqe& e, uint64_t dma, uint64_t bytes);
    bool find_data(const vql_nvme_sqe& e, uint64_t bytes);
    bool find_prp(const vql_nvme_sqe& e, uint64_t bytes);
    bool find_sgl(const vql_nvme_sqe& e, uint64_t bytes);
    void check_common(const vql_nvme_sqe& e);
    uint32_t execute(const vql_nvme_sqe& e);
    uint32_t execute_data(const vql_nvme_sqe& e, uint64_t lba, uint64_t blocks);
    uint32_t execute_dsm(const vql_nvme_sqe& e);
    bool crosses_boundary(uint64_t lba, uint64_t blocks) const {
        return o_.boundary_blocks &&
               lba / o_.boundary_blocks != (lba + blocks - 1) / o_.boundary_blocks;
    }
    void mark(uint64_t lba, uint64_t blocks, bool stable);
    bool cq_full();

    options o_;
    std::mt19937_64 random_;
    std::vector<uint8_t> disk_;
    std::vector<uint8_t> unstable_; // by block
    std::vector<uint8_t*> pages_;   // by number: (DMA address - dma_base) / 4096
    std::vector<run_of_bytes> runs_;
    std::vector<vql_nvme_sqe> under_way_;
    std::vector<bool> cid_used_;
    std::vector<std::string> violations_;
    counters count_;

    uint8_t* memory_ = nullptr; // all that follows
    size_t memory_bytes_ = 0;
    vql_nvme_sqe* sq_ = nullptr;
    vql_nvme_cqe* cq_ = nullptr;
    uint32_t* doorbells_ = nullptr; // submission, completion
    uint32_t* shadows_ = nullptr;
    uint32_t* events_ = nullptr;
    uint32_t* state_ = nullptr;
    uint8_t* pool_ = nullptr;
    uint32_t pool_pages_ = 0;
    uint64_t pool_dma_ = 0;

    uint32_t sq_head_ = 0;
    uint32_t sq_tail_ = 0; // as last told
    uint32_t cq_tail_ = 0;
    uint32_t cq_head_ = 0; // as last told
    uint16_t phase_ = 1;
    bool awake_ = false; // with shadow doorbells: looks at them without being told
};

} // namespace vql::test
