// What a block's message is and what becomes of it, by feedback, over rows of 32 lanes. Included
// once per target, as bodies-inl.h is.
#if defined(THINWIRE_MESSAGES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef THINWIRE_MESSAGES_INL_H
#undef THINWIRE_MESSAGES_INL_H
#else
#define THINWIRE_MESSAGES_INL_H
#endif

#include "collectives/compression/kernels/kernels.h"
#ifdef __CUDACC__
#include "collectives/compression/kernels/device_rows.h"
#else
#include "collectives/compression/kernels/host_rows-inl.h"
#endif

THINWIRE_ROWS_BEGIN

// What is left of a message that was sent as its signs times `scale`.
template <typename T>
THINWIRE_BODY Row<T> unsent(const Row<T>& message, T scale) {
  return message - select(less(message, zeros<T>()), fill<T>(-scale), fill<T>(scale));
}

// ---- What becomes of the message ----
//
// `only` forms the message of a row and `keep` keeps what `again`, any number of times, needs to
// form it once more; `first` is both. `absorb` ends it.
// `expect` fetches what `first` will read `ahead` elements further on.
// `message_stays`: absorbing a decoded zero would change nothing after `first`.

template <typename T>
struct NoFeedback {
  static constexpr bool message_stays = true;
  T* gradient;
  template <typename Place>
  THINWIRE_BODY Row<T> only(Place row) {
    return load(gradient, row);
  }
  template <typename Place>
  THINWIRE_BODY void keep(Place, const Row<T>&) {}
  template <typename Place>
  THINWIRE_BODY Row<T> first(Place row) {
    return only(row);
  }
  template <typename Place>
  THINWIRE_BODY Row<T> again(Place row) {
    return only(row);
  }
  template <typename Place>
  THINWIRE_BODY void expect(Place row, std::int64_t ahead) const {
    fetch(gradient, moved(row, ahead));
  }
  template <typename Place>
  THINWIRE_BODY void absorb(Place, const Row<T>&, const Row<T>&) {}
};

// Momentum, which is no feedback but reads memory as one.
template <typename T>
struct Averaged {
  const T* gradient;
  const T* momentum;
  T keep;
  T share;
  template <typename Place>
  THINWIRE_BODY Row<T> only(Place row) {
    return fill(keep) * load_constant(momentum, row) + fill(share) * load(gradient, row);
  }
  template <typename Place>
  THINWIRE_BODY void expect(Place row, std::int64_t ahead) const {
    fetch(gradient, moved(row, ahead));
    fetch(momentum, moved(row, ahead));
  }
};

template <typename T>
struct ErrorFeedback {
  static constexpr bool message_stays = true;
  T* gradient;
  const T* error;
  template <typename Place>
  THINWIRE_BODY Row<T> only(Place row) {
    return load(gradient, row) + load_constant(error, row);
  }
  template <typename Place>
  THINWIRE_BODY void keep(Place row, const Row<T>& message) {
    store(gradient, row, message);
  }
  template <typename Place>
  THINWIRE_BODY Row<T> first(Place row) {
    const Row<T> message = only(row);
    keep(row, message);
    return message;
  }
  template <typename Place>
  THINWIRE_BODY Row<T> again(Place row) {
    return load(gradient, row);
  }
  template <typename Place>
  THINWIRE_BODY void expect(Place row, std::int64_t ahead) const {
    fetch(gradient, moved(row, ahead));
    fetch(error, moved(row, ahead));
  }
  template <typename Place>
  THINWIRE_BODY void absorb(Place row, const Row<T>& message, const Row<T>& decoded) {
    store(gradient, row, message - decoded);
  }
};

// Error feedback that keeps messages and the scales they were sent with (Residual::sent): nothing
// is left to absorb.
template <typename T>
struct KeptMessages {
  T* gradient;
  const T* error;
  T sent;
  T* sent_next;
  template <typename Place>
  THINWIRE_BODY Row<T> only(Place row) {
    // Lanes that are not there stay zero: they count in the scale's sum.
    const Row<T> left = there(row, unsent(load_constant(error, row), sent), zeros<T>());
    return load(gradient, row) + left;
  }
  template <typename Place>
  THINWIRE_BODY void keep(Place row, const Row<T>& message) {
    store(gradient, row, message);
  }
  template <typename Place>
  THINWIRE_BODY Row<T> first(Place row) {
    const Row<T> message = only(row);
    keep(row, message);
    return message;
  }
};

template <typename T>
struct Tracked {
  static constexpr bool message_stays = false;
  T* gradient;
  const T* error;
  const T* tracker;
  T eta;
  template <typename Place>
  THINWIRE_BODY Row<T> only(Place row) {
    return (fill(eta) * load_constant(error, row) + load(gradient, row)) -
           load_constant(tracker, row);
  }
  template <typename Place>
  THINWIRE_BODY void keep(Place, const Row<T>&) {}
  template <typename Place>
  THINWIRE_BODY Row<T> first(Place row) {
    return only(row);
  }
  template <typename Place>
  THINWIRE_BODY Row<T> again(Place row) {
    return only(row);
  }
  template <typename Place>
  THINWIRE_BODY void expect(Place row, std::int64_t ahead) const {
    fetch(gradient, moved(row, ahead));
    fetch(error, moved(row, ahead));
    fetch(tracker, moved(row, ahead));
  }
  template <typename Place>
  THINWIRE_BODY void absorb(Place row, const Row<T>&, const Row<T>& decoded) {
    const Row<T> unsent =
        (load_constant(error, row) + load(gradient, row)) - load_constant(tracker, row);
    store(gradient, row, unsent - decoded);
  }
};

THINWIRE_ROWS_END

#endif
