# cmake --install, and find_package(thinwire) afterwards.
include(CMakePackageConfigHelpers)
get_property(_libraries GLOBAL PROPERTY THINWIRE_LIBRARIES)
install(TARGETS ${_libraries} EXPORT thinwire ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
foreach(_layer runtime collectives optimizers)
  install(DIRECTORY ${_layer} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/thinwire
          FILES_MATCHING PATTERN "*.h")
endforeach()
install(EXPORT thinwire NAMESPACE thinwire:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/thinwire)
configure_package_config_file(cmake/thinwireConfig.cmake.in thinwireConfig.cmake
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/thinwire)
write_basic_package_version_file(thinwireConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/thinwireConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/thinwireConfigVersion.cmake" cmake/Libtorch.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/thinwire)
