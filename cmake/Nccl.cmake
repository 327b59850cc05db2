# NCCL as the imported target `thinwire::nccl_library`, if it is found beside the CUDA toolkit.
# Sets THINWIRE_NCCL_FOUND and THINWIRE_NCCL_VERSION.

find_path(THINWIRE_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
find_library(THINWIRE_NCCL_LIBRARY nccl HINTS ${CUDAToolkit_LIBRARY_DIR})
set(THINWIRE_NCCL_FOUND FALSE)
set(THINWIRE_NCCL_VERSION "")
if(THINWIRE_NCCL_INCLUDE AND THINWIRE_NCCL_LIBRARY AND CUDAToolkit_FOUND)
  set(THINWIRE_NCCL_FOUND TRUE)
  file(STRINGS "${THINWIRE_NCCL_INCLUDE}/nccl.h" _lines REGEX "define NCCL_(MAJOR|MINOR|PATCH)")
  string(REGEX MATCHALL "[0-9]+" _numbers "${_lines}")
  list(JOIN _numbers "." THINWIRE_NCCL_VERSION)
  if(NOT TARGET thinwire::nccl_library)
    add_library(thinwire::nccl_library INTERFACE IMPORTED GLOBAL)
    set_target_properties(thinwire::nccl_library PROPERTIES
      INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${THINWIRE_NCCL_INCLUDE}"
      INTERFACE_INCLUDE_DIRECTORIES "${THINWIRE_NCCL_INCLUDE}"
      INTERFACE_LINK_LIBRARIES "${THINWIRE_NCCL_LIBRARY}")
  endif()
endif()
