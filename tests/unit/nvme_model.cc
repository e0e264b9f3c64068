// SPDX-License-Identifier: GPL-2.0-only
#include "nvme_model.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <thread>

namespace vql::test {

namespace {
constexpr uint64_t dma_base = 0x1234'0000'0000; // needs more than 32 bits
constexpr uint64_t page_bytes = 4096;
} // namespace

nvme_model::nvme_model(const options& o)
    : o_(o), random_(o.shuffle), disk_(o.blocks * o.block_bytes), unstable_(o.blocks),
      cid_used_(65536) {
    pool_pages_ = o.depth + o.bounce_pages;
    const size_t sq_bytes = page_round(o.depth * sizeof(vql_nvme_sqe));
    const size_t pool_bytes = pool_pages_ * page_bytes;
    memory_bytes_ = sq_bytes + cq_bytes() + 4 * page_bytes + pool_bytes;
    void* const at =
        ::mmap(nullptr, memory_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
        std::abort();
    memory_ = static_cast<uint8_t*>(at);
    uint8_t* next = memory_;
    const auto part = [&](size_t bytes) {
        uint8_t* const here = next;
        next += bytes;
        return static_cast<void*>(here);
    };
    sq_ = static_cast<vql_nvme_sqe*>(part(sq_bytes));
    cq_ = static_cast<vql_nvme_cqe*>(part(cq_bytes()));
    doorbells_ = static_cast<uint32_t*>(part(page_bytes));
    shadows_ = static_cast<uint32_t*>(part(page_bytes));
    events_ = static_cast<uint32_t*>(part(page_bytes));
    state_ = static_cast<uint32_t*>(part(page_bytes));
    pool_ = static_cast<uint8_t*>(part(pool_bytes));

    pages_.push_back(nullptr);
    pool_dma_ = dma_base + pages_.size() * page_bytes; // contiguous
    for (uint32_t i = 0; i < pool_pages_; i++)
        pages_.push_back(pool_ + i * page_bytes);
    pages_.push_back(nullptr);
    vql_write_once(state_, 1u); // there is no queue pair yet
}

nvme_model::~nvme_model() {
    ::munmap(memory_, memory_bytes_);
}

vql_nvme_queue nvme_model::queue() {
    std::memset(memory_, 0, memory_bytes_);
    // Left by whoever had the memory before; only queues are made zero.
    std::memset(sq_, 0xa5, o_.depth * sizeof(vql_nvme_sqe));
    std::memset(pool_, 0x5a, pool_pages_ * page_bytes);
    doorbells_[0] = doorbells_[1] = nothing;
    sq_head_ = sq_tail_ = cq_tail_ = cq_head_ = 0;
    phase_ = 1;
    awake_ = false;
    vql_nvme_queue q{};
    q.sq = sq_;
    q.cq = cq_;
    q.sq_doorbell = &doorbells_[0];
    q.cq_doorbell = &doorbells_[1];
    if (o_.shadow) {
        q.sq_shadow = &shadows_[0];
        q.cq_shadow = &shadows_[1];
        q.sq_event = &events_[0];
        q.cq_event = &events_[1];
    }
    q.pool = pool_;
    q.pool_dma = pool_dma_;
    q.state = state_;
    q.pool_pages = pool_pages_;
    q.depth = o_.depth;
    q.qid = 7;
    q.limits = {o_.max_transfer, o_.max_zeroes, o_.max_discard};
    q.sgl = o_.sgl;
    q.volatile_cache = o_.volatile_cache;
    q.write_zeroes = o_.write_zeroes;
    q.discard = o_.discard;
    for (uint16_t i = 0; i < 3; i++)
        q.crdt[i] = o_.crdt[i];
    return q;
}

std::vector<uint64_t> nvme_model::map(uint8_t* base, uint64_t bytes, uint64_t seed) {
    std::mt19937_64 random(seed);
    const uint64_t n = bytes / page_bytes;
    std::vector<std::pair<uint64_t, uint64_t>> parts; // pages of @base
    for (uint64_t i = 0; i < n;) {
        const uint64_t here = std::min<uint64_t>(1 + random() % 8, n - i);
        parts.emplace_back(i, here);
        i += here;
    }
    std::shuffle(parts.begin(), parts.end(), random);
    std::vector<uint64_t> table(n);
    for (const auto& [first, count] : parts) {
        for (uint64_t i = first; i < first + count; i++) {
            table[i] = dma_base + pages_.size() * page_bytes;
            pages_.push_back(base + i * page_bytes);
        }
        if (random() % 2) // a hole, so that running on is seen
            pages_.push_back(nullptr);
    }
    pages_.push_back(nullptr);
    return table;
}

void nvme_model::violation(const vql_nvme_sqe& e, const std::string& what) {
    if (violations_.size() < 16)
        violations_.push_back("opcode " + std::to_string(e.opcode) + " block " +
                              std::to_string(e.cdw10) + ": " + what);
}

// ---- data pointers ----

uint8_t* nvme_model::translate(uint64_t dma) {
    const uint64_t page = (dma - dma_base) / page_bytes;
    if (dma < dma_base || page >= pages_.size() || !pages_[page])
        return nullptr;
    return pages_[page] + dma % page_bytes;
}

bool nvme_model::add_run(const vql_nvme_sqe& e, uint64_t dma, uint64_t bytes) {
    while (bytes) {
        const uint64_t here = std::min(bytes, page_bytes - dma % page_bytes);
        uint8_t* const at = translate(dma);
        if (!at) {
            violation(e, "DMA to an address that is not mapped");
            return false;
        }
        if (dma - pool_dma_ < pool_pages_ * page_bytes)
            count_.pool_data += here;
        runs_.push_back({at, here});
        dma += here;
        bytes -= here;
    }
    return true;
}

bool nvme_model::find_data(const vql_nvme_sqe& e, uint64_t bytes) {
    runs_.clear();
    switch (e.flags & 0xc0) {
    case 0: return find_prp(e, bytes);
    case 0x40: count_.sgl++; return find_sgl(e, bytes);
    default: violation(e, "reserved PSDT"); return false;
    }
}

// NVMe 2.0 §4.1.1.
bool nvme_model::find_prp(const vql_nvme_sqe& e, uint64_t bytes) {
    const uint64_t first = e.data.prp[0];
    const uint64_t second = e.data.prp[1];
    if (first & 3) {
        violation(e, "PRP1 is not dword-aligned");
        return false;
    }
    const uint64_t here = std::min(bytes, page_bytes - first % page_bytes);
    if (!add_run(e, first, here))
        return false;
    bytes -= here;
    if (!bytes) {
        if (second)
            violation(e, "PRP2 is reserved where PRP1 holds all");
        return true;
    }
    if (bytes <= page_bytes) {
        if (second % page_bytes) {
            violation(e, "PRP2 has an offset");
            return false;
        }
        return add_run(e, second, bytes);
    }
    count_.lists++;
    const uint64_t entries = (bytes + page_bytes - 1) / page_bytes;
    if (second % 8 || second % page_bytes + entries * 8 > page_bytes || !translate(second)) {
        violation(e, "the PRP list is not in one page, at a multiple of 8");
        return false;
    }
    for (uint64_t i = 0; i < entries; i++) {
        uint64_t entry = 0;
        std::memcpy(&entry, translate(second) + i * 8, 8);
        if (entry % page_bytes) {
            violation(e, "an entry of the PRP list has an offset");
            return false;
        }
        const uint64_t n = std::min(bytes, page_bytes);
        if (!add_run(e, entry, n))
            return false;
        bytes -= n;
    }
    return true;
}

// NVMe 2.0 §4.1.2; SGLS 01b, no bit buckets, one segment.
bool nvme_model::find_sgl(const vql_nvme_sqe& e, uint64_t bytes) {
    const vql_nvme_sgl& d = e.data.sgl;
    if (!o_.sgl) {
        violation(e, "SGLs are not supported");
        return false;
    }
    const auto add = [&](const vql_nvme_sgl& one) {
        if (one.type || one.reserved[0] || one.reserved[1] || one.reserved[2] || !one.bytes ||
            one.bytes > bytes) {
            violation(e, "a data block descriptor is not one, or too long");
            return false;
        }
        bytes -= one.bytes;
        return add_run(e, one.addr, one.bytes);
    };
    if (d.type == 0) {
        if (!add(d))
            return false;
    } else {
        count_.lists++;
        if (d.type != 0x30 || d.reserved[0] || d.reserved[1] || d.reserved[2] || !d.bytes ||
            d.bytes % 16 || d.addr % page_bytes + d.bytes > page_bytes || !translate(d.addr)) {
            violation(e, "the last segment is not one page of descriptors");
            return false;
        }
        for (uint32_t i = 0; i < d.bytes / 16; i++) {
            vql_nvme_sgl one;
            std::memcpy(&one, translate(d.addr) + i * 16, 16);
            if (!add(one))
                return false;
        }
    }
    if (bytes)
        violation(e, "the SGL is shorter than the data");
    return !bytes;
}

// ---- commands ----

void nvme_model::check_common(const vql_nvme_sqe& e) {
    if (e.flags & 0x3f)
        violation(e, "fused or reserved flags");
    if (e.nsid != o_.nsid)
        violation(e, "another namespace");
    if (e.cdw2 || e.cdw3 || e.metadata || e.cdw13 || e.cdw14 || e.cdw15)
        violation(e, "a reserved field is set");
}

void nvme_model::mark(uint64_t lba, uint64_t blocks, bool stable) {
    std::fill_n(unstable_.begin() + ptrdiff_t(lba), blocks, uint8_t(!stable && o_.volatile_cache));
}

uint64_t nvme_model::unstable(uint64_t lba, uint64_t blocks) const {
    return uint64_t(std::count(unstable_.begin() + ptrdiff_t(lba),
                               unstable_.begin() + ptrdiff_t(lba + blocks), uint8_t{1}));
}

uint32_t nvme_model::execute(const vql_nvme_sqe& e) {
    const uint64_t lba = uint64_t(e.cdw11) << 32 | e.cdw10;
    const uint64_t blocks = (e.cdw12 & 0xffff) + 1;
    count_.commands[e.opcode]++;
    check_common(e);
    if (inject)
        if (const uint32_t code = inject(e))
            return code;
    switch (e.opcode) {
    case 0x00:
        if (e.cdw10 || e.cdw11 || e.cdw12 || e.data.prp[0] || e.data.prp[1])
            violation(e, "a flush with arguments");
        std::fill(unstable_.begin(), unstable_.end(), uint8_t{0});
        return 0;
    case 0x01:
    case 0x02:
    case 0x08:
        if (lba >= o_.blocks || blocks > o_.blocks - lba) {
            violation(e, "beyond the end");
            return 0x80;
        }
        if (e.opcode != 0x08)
            return execute_data(e, lba, blocks);
        if (!o_.write_zeroes)
            return 0x01;
        if (e.cdw12 & ~0x4200ffffu || e.flags || e.data.prp[0] || e.data.prp[1])
            violation(e, "write zeroes with reserved fields");
        // As some controllers have it that do not say what they take.
        if (blocks * o_.block_bytes > (o_.max_zeroes ? o_.max_zeroes : o_.max_transfer)) {
            violation(e, "more zeroes than WZSL, or MDTS");
            return 0x02;
        }
        if (crosses_boundary(lba, blocks))
            violation(e, "crosses the namespace's boundary");
        std::memset(block(lba), 0, blocks * o_.block_bytes);
        if (e.cdw12 & 1u << 25)
            count_.deallocated += blocks;
        mark(lba, blocks, e.cdw12 & 1u << 30);
        return 0;
    case 0x09: return o_.discard ? execute_dsm(e) : 0x01;
    default: violation(e, "unknown opcode"); return 0x01;
    }
}

uint32_t nvme_model::execute_data(const vql_nvme_sqe& e, uint64_t lba, uint64_t blocks) {
    const uint64_t bytes = blocks * o_.block_bytes;
    const bool read = e.opcode == 0x02;
    if (e.cdw12 & (read ? 0xffff0000u : 0xbfff0000u))
        violation(e, "reserved or unexpected bits in dword 12");
    if (bytes > o_.max_transfer) {
        violation(e, "more than MDTS");
        return 0x02;
    }
    if (crosses_boundary(lba, blocks))
        violation(e, "crosses the namespace's boundary");
    if (!find_data(e, bytes))
        return 0x02;
    uint8_t* at = block(lba);
    for (const run_of_bytes& r : runs_) {
        if (read)
            std::memcpy(r.at, at, r.bytes);
        else
            std::memcpy(at, r.at, r.bytes);
        at += r.bytes;
    }
    if (!read)
        mark(lba, blocks, e.cdw12 & 1u << 30);
    return 0;
}

uint32_t nvme_model::execute_dsm(const vql_nvme_sqe& e) {
    struct {
        uint32_t attributes, blocks;
        uint64_t lba;
    } range;
    if (e.cdw10 & ~0xffu || e.cdw11 != 4 || e.cdw12)
        violation(e, "DSM that is not one plain deallocation");
    const uint64_t bytes = ((e.cdw10 & 0xff) + 1) * sizeof(range);
    if (!find_data(e, bytes))
        return 0x02;
    count_.pool_data -= bytes; // not data
    if (runs_.size() != 1 || bytes != sizeof(range)) {
        violation(e, "more than one range");
        return 0x02;
    }
    std::memcpy(&range, runs_[0].at, sizeof(range));
    if (range.lba >= o_.blocks || range.blocks > o_.blocks - range.lba || !range.blocks) {
        violation(e, "a range beyond the end, or empty");
        return 0x80;
    }
    if (o_.max_discard && range.blocks > o_.max_discard) {
        violation(e, "a larger range than DMRSL");
        return 0x80;
    }
    std::memset(block(range.lba), 0, uint64_t(range.blocks) * o_.block_bytes);
    count_.deallocated += range.blocks;
    mark(range.lba, range.blocks, false);
    return 0;
}

bool nvme_model::touches(uint64_t lba, uint64_t blocks) const {
    return std::any_of(under_way_.begin(), under_way_.end(), [&](const vql_nvme_sqe& e) {
        if (e.opcode != 0x01 && e.opcode != 0x02 && e.opcode != 0x08)
            return false;
        const uint64_t first = uint64_t(e.cdw11) << 32 | e.cdw10;
        return first < lba + blocks && lba < first + (e.cdw12 & 0xffff) + 1;
    });
}

// ---- queues ----

size_t nvme_model::fetch() {
    if (vql_load_acquire(state_))
        return 0;
    // Taking the value away shows each write once, also of a value that was there before.
    const uint32_t rung = __atomic_exchange_n(&doorbells_[0], nothing, __ATOMIC_ACQ_REL);
    if (rung != nothing) {
        count_.rings++;
        awake_ = true;
        if (rung >= o_.depth)
            violation({}, "doorbell beyond the queue");
        else if (!o_.shadow)
            sq_tail_ = rung;
    }
    for (;;) {
        if (o_.shadow && awake_)
            sq_tail_ = vql_load_acquire(&shadows_[0]);
        while (sq_head_ != sq_tail_) {
            const vql_nvme_sqe& e = sq_[sq_head_];
            if (cid_used_[e.cid])
                violation(e, "its identifier is in use");
            cid_used_[e.cid] = true;
            under_way_.push_back(e);
            sq_head_ = (sq_head_ + 1) % o_.depth;
        }
        if (!o_.shadow || !awake_)
            break;
        // Going to sleep: say from where on to be told, and look once more. Pairs with the full
        // barrier between shadow and event index of the other side.
        vql_write_once(&events_[0], sq_tail_);
        vql_mb();
        if (vql_load_acquire(&shadows_[0]) == sq_tail_)
            awake_ = false;
    }
    return under_way_.size();
}

bool nvme_model::cq_full() {
    const uint32_t rung = __atomic_exchange_n(&doorbells_[1], nothing, __ATOMIC_ACQ_REL);
    if (o_.shadow) {
        cq_head_ = vql_load_acquire(&shadows_[1]);
        vql_write_once(&events_[1], cq_head_);
    } else if (rung != nothing) {
        cq_head_ = rung;
    }
    return (cq_tail_ + 1) % o_.depth == cq_head_;
}

void nvme_model::post(uint16_t cid, uint32_t code) {
    if (cq_full()) {
        violation({}, "no room for a completion");
        return;
    }
    vql_nvme_cqe& e = cq_[cq_tail_];
    e.result = 0xdeadbeef; // of no meaning
    e.reserved = 0;
    e.sq_head = uint16_t(sq_head_);
    e.sq_id = 1;
    e.cid = cid;
    // Do Not Retry, when it is an error that lasts.
    const uint32_t lasts = code && !(code & for_now) ? 1u << 14 : 0;
    const auto status = uint16_t(((code & 0x3fff) | lasts) << 1 | phase_);
    vql_store_release(&e.status, status);
    if (++cq_tail_ == o_.depth) {
        cq_tail_ = 0;
        phase_ ^= 1;
    }
}

size_t nvme_model::complete(size_t most) {
    size_t n = 0;
    for (; n < most && n < under_way_.size() && !vql_load_acquire(state_) && !cq_full(); n++) {
        if (o_.shuffle)
            std::swap(under_way_[n], under_way_[n + random_() % (under_way_.size() - n)]);
        const vql_nvme_sqe& e = under_way_[n];
        const uint32_t code = execute(e);
        cid_used_[e.cid] = false;
        post(e.cid, code);
    }
    under_way_.erase(under_way_.begin(), under_way_.begin() + ptrdiff_t(n));
    return n;
}

void nvme_model::drain() {
    while (fetch() && complete(under_way_.size()))
        ;
}

void nvme_model::run(const std::atomic<bool>& stop) {
    while (!stop.load(std::memory_order_acquire))
        if (const size_t n = fetch())
            complete(o_.shuffle ? 1 + random_() % n : n);
        else
            std::this_thread::yield(); // CPUs may be few
}

void nvme_model::lose(bool half) {
    for (const vql_nvme_sqe& e : under_way_)
        if (half && random_() % 2)
            execute(e);
    under_way_.clear();
    cid_used_.assign(cid_used_.size(), false);
    set_state(1);
    std::memset(sq_, 0, o_.depth * sizeof(vql_nvme_sqe));
    std::memset(cq_, 0, o_.depth * sizeof(vql_nvme_cqe));
    std::memset(pool_, 0, pool_pages_ * page_bytes);
    doorbells_[0] = doorbells_[1] = nothing;
}

} // namespace vql::test
