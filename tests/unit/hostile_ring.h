// SPDX-License-Identifier: GPL-2.0-only
// What a device does with a ring whose driver it can't trust, and what must hold while it does.
// Used with random rings (ring_random_test.cc) and with a fuzzer's (tests/fuzz/ring_fuzz.cc).
#pragma once

#include "ring_memory.h"

#include <algorithm>
#include <array>
#include <memory>

namespace vql::test {

struct served {
    unsigned submitted = 0;
    unsigned answered = 0;
    unsigned plain = 0;           // of those submitted, such that the short way takes
    unsigned large = 0;           // chains with more segments than most
    int stopped = VQL_RING_OK;    // enum vql_ring_error: why the ring was stopped
    const char* broken = nullptr; // an invariant that does not hold: a bug
};

// Reads and writes the ends of each segment: outside guest memory that is a crash.
inline void touch(const vql_seg* seg, uint32_t n, bool writable) {
    for (uint32_t i = 0; i < n; i++) {
        auto* base = static_cast<volatile uint8_t*>(seg[i].base);
        for (uint64_t at : {0ull, seg[i].bytes - 1}) {
            const uint8_t was = base[at];
            if (writable) // may well change the ring's own tables: the guest asked for it
                base[at] = static_cast<uint8_t>(was + 1);
        }
    }
}

// The short way of the request that most are, against the long one.
class plain_take {
  public:
    // Before the same head is walked, which may write where the chain is.
    plain_take(const vql_ring& r, const vql_mem& m, uint16_t head, const vql_blk_disk& disk)
        : taken_(vql_blk_take_plain(&r, &m, head, &disk, chain_.get(), &io_, &answer_)) {}

    bool taken() const { return taken_; }
    // Has the walk and the parse, which said @verdict, found what is not the same?
    bool differs(int verdict, const vql_io& io, const vql_blk_answer& answer) const {
        if (!taken_)
            return false;
        return verdict != VQL_BLK_SUBMIT || io.op != io_.op || io.sector != io_.sector ||
               io.bytes != io_.bytes || io.flags != io_.flags || io.status != io_.status ||
               io.nsegs != 1 || io_.nsegs != 1 || io.seg->base != io_.seg->base ||
               io.seg->bytes != io_.seg->bytes || io_.seg != chain_->seg ||
               chain_->nout != (io.op == VQL_OP_WRITE) || answer.status != answer_.status ||
               (io.op == VQL_OP_READ && answer.data_bytes != answer_.data_bytes) ||
               written(io, answer) != written(io_, answer_);
    }

  private:
    // used.len of a success
    static uint64_t written(const vql_io& io, const vql_blk_answer& answer) {
        vql_blk_answer elsewhere = answer;
        uint8_t status = 0;
        elsewhere.status = &status;
        return vql_blk_finish(&io, &elsewhere);
    }

    std::unique_ptr<vql_chain> chain_ = std::make_unique<vql_chain>();
    vql_io io_{};
    vql_blk_answer answer_{};
    const bool taken_;
};

// The same chain walked with more room: it begins with what the walk @c found. Of what found no
// room only the last byte was looked up, so that @error may be VQL_RING_BAD_ADDRESS now, and is 0
// else. Returns what does not hold, or nullptr.
inline const char* walk_again(const guest_ram& ram, const vql_ring& r, vql_mem m, uint16_t head,
                              const vql_chain& c, vql_chain& again, vql_seg* seg, int& error) {
    error = vql_chain_walk_into(&r, &m, head, &again, seg, VQL_MOST_SEGS);
    if (error == -VQL_RING_BAD_ADDRESS && c.truncated)
        return nullptr;
    if (error)
        return "a chain that was walked could not be walked again";
    if (const char* broken = broken_invariant(ram, again, seg, VQL_MOST_SEGS))
        return broken;
    if (again.out_bytes != c.out_bytes || again.in_bytes != c.in_bytes ||
        again.last_in != c.last_in || again.nout < c.nout || (again.truncated && !c.truncated))
        return "with more room it is another chain";
    if (!c.truncated && (again.nout != c.nout || again.nin != c.nin))
        return "with more room it has more segments";
    for (uint32_t i = 0; i < c.nout + c.nin; i++)
        if (seg[i].base != c.seg[i].base || seg[i].bytes != c.seg[i].bytes)
            return "with more room it has other segments";
    return nullptr;
}

// Takes every available entry once and answers it, in batches of @batch, until the ring is empty
// or broken.
inline served serve_all(const guest_ram& ram, test_ring& t, const vql_blk_disk& disk,
                        unsigned batch) {
    static vql_chain chain, again; // 4 KiB each; one thread
    static std::array<vql_seg, VQL_MOST_SEGS> segs;
    served s;
    vql_mem m = ram.mem();
    // What the device writes may make entries available again; so much is enough.
    for (unsigned taken = 0; taken < 2u * VQL_MAX_QUEUE_SIZE; taken++) {
        const int pending = vql_ring_pending(&t.ring);
        vql_io io;
        vql_blk_answer answer{};

        if (pending < 0)
            s.stopped = -pending;
        if (pending <= 0)
            break;
        const uint16_t head = vql_ring_peek(&t.ring);
        vql_ring_prefetch(&t.ring, &m, std::min<uint32_t>(uint32_t(pending), VQL_BATCH));
        const plain_take plain(t.ring, m, head, disk);
        const int err = vql_chain_walk(&t.ring, &m, head, &chain);
        if (err) {
            s.stopped = -err;
            if (plain.taken())
                s.broken = "a chain that breaks its ring was taken the short way";
            if (err >= 0 || s.stopped >= VQL_RING_ERRORS)
                s.broken = "the walk returned an unknown error";
            break;
        }
        if ((s.broken = broken_invariant(ram, chain)))
            break;
        int error = 0;
        if ((s.broken = walk_again(ram, t.ring, m, head, chain, again, segs.data(), error)))
            break;
        if (error) {
            s.stopped = -error;
            break;
        }
        const uint64_t in_bytes = chain.in_bytes;
        s.large += chain.truncated;
        // As a poller does it.
        const int verdict = chain.truncated
                                ? vql_blk_parse_segs(&again, segs.data(), &disk, &io, &answer)
                                : vql_blk_parse(&chain, &disk, &io, &answer);
        if (verdict == -VQL_RING_NO_STATUS) {
            s.stopped = VQL_RING_NO_STATUS;
            if (in_bytes)
                s.broken = "there was a byte to answer in";
            break;
        }
        if ((s.broken = broken_invariant(ram, disk, io, answer, verdict)))
            break;
        if (plain.differs(verdict, io, answer)) {
            s.broken = "the short way makes another request of the chain";
            break;
        }
        s.plain += plain.taken();
        (verdict == VQL_BLK_SUBMIT ? s.submitted : s.answered)++;
        touch(io.seg, io.nsegs, io.op == VQL_OP_READ);
        const uint32_t len = vql_blk_finish(&io, &answer);
        if (len > in_bytes) {
            s.broken = "used.len is more than the writable bytes";
            break;
        }
        t.ring.next_avail++;
        vql_ring_push(&t.ring, head, len);
        if (taken % batch == 0) {
            vql_ring_publish(&t.ring);
            vql_ring_should_interrupt(&t.ring);
            vql_ring_arm(&t.ring);
            vql_ring_disarm(&t.ring);
        }
    }
    vql_ring_publish(&t.ring);
    return s;
}

} // namespace vql::test
